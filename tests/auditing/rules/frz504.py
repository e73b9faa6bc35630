"""Cases of FRZ504, statistics-updated-twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import live, seeded

_ONLY = frozenset({"FRZ504"})


class _Net(nn.Module):
    def __init__(self, *, recompute: bool) -> None:
        super().__init__()
        with seeded(0):
            self.block = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            self.head = nn.Linear(4, 2)
        live(self)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        if self.recompute:
            return self.head(checkpoint(self.block, x, use_reentrant=False))
        return self.head(self.block(x))


def _batch() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def _two_views(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - model(batch.flip(1))).square().mean()


def bad_computed_again() -> Case:
    return Case(_Net(recompute=True), batch=_batch(), codes=_ONLY)


def bad_two_views() -> Case:
    model = _Net(recompute=False)
    return Case(model, batch=_batch(), compute_loss=_two_views, codes=_ONLY)


def bad_frozen() -> Case:
    model = _Net(recompute=False)
    model.block.requires_grad_(False)
    codes = frozenset({"FRZ101", "FRZ504"})
    return Case(model, batch=_batch(), compute_loss=_two_views, codes=codes)


def bad_after_train() -> Case:
    return Case(_Net(recompute=True).eval(), batch=_batch(), codes=_ONLY)


def good_once() -> Case:
    return Case(_Net(recompute=False), batch=_batch())


def good_held() -> Case:
    model = _Net(recompute=True)
    fl.freeze(model, "block")
    return Case(model, batch=_batch())


def good_two_views_of_a_norm_that_keeps_nothing() -> Case:
    model = _Net(recompute=False)
    model.block[1] = nn.LayerNorm(4)
    return Case(model, batch=_batch(), compute_loss=_two_views)
