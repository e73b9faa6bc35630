"""Cases of FRZ602, output-differs-by-mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, live, seeded

_ONLY = frozenset({"FRZ602"})


def _net(middle: nn.Module) -> nn.Sequential:
    with seeded(0):
        model = live(nn.Sequential(nn.Linear(4, 4), middle, nn.Linear(4, 2)))
    model[:2].requires_grad_(False)
    return model


def _batch() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def bad_dropout() -> Case:
    return Case(_net(nn.Dropout(0.3)), frozen=["0", "1"], batch=_batch(), codes=_ONLY)


def bad_batch_norm() -> Case:
    return Case(_net(nn.BatchNorm1d(4)), batch=_batch(), codes=_ONLY | {"FRZ101"})


def bad_bert_by_flags() -> Case:
    entry = ZOO["bert"]
    model = entry.build()
    model.bert.requires_grad_(False)
    return Case(model, batch=entry.batch(), compute_loss=entry.loss, codes=_ONLY)


def good_dropout_of_nothing() -> Case:
    return Case(_net(nn.Dropout(0.0)), frozen=["0", "1"], batch=_batch())


def good_held() -> Case:
    model = _net(nn.Dropout(0.3))
    fl.freeze(model, ["0", "1"])
    return Case(model, batch=_batch())


def good_layer_norm() -> Case:
    return Case(_net(nn.LayerNorm(4)), batch=_batch())
