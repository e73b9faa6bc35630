"""Cases of FRZ601, nondeterministic-frozen-part."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, seeded

_ONLY = frozenset({"FRZ601"})


class _Dropping(nn.Linear):
    """Dropout by a function, which asks for no mode unless it is told to."""

    def __init__(self, *, asks: bool) -> None:
        super().__init__(4, 4)
        self.asks = asks

    def forward(self, x: Tensor) -> Tensor:
        on = self.training if self.asks else True
        return F.dropout(super().forward(x), 0.4, training=on)


class _Shifted(nn.Linear):
    """Draws from Python's generator, which torch's seed says nothing about."""

    def __init__(self) -> None:
        super().__init__(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + random.random()


def _net(first: nn.Module, *, held: bool = False) -> nn.Sequential:
    with seeded(0):
        model = nn.Sequential(first, nn.LayerNorm(4), nn.Linear(4, 2))
    model[:2].requires_grad_(False).eval()
    if held:
        fl.freeze(model, ["0", "1"])
    return model


def _batch() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def bad_dropout_by_a_function() -> Case:
    return Case(_net(_Dropping(asks=False)), batch=_batch(), codes=_ONLY)


def bad_held_and_dropping_all_the_same() -> Case:
    return Case(_net(_Dropping(asks=False), held=True), batch=_batch(), codes=_ONLY)


def bad_draws_of_python() -> Case:
    return Case(_net(_Shifted(), held=True), batch=_batch(), codes=_ONLY)


def good_dropout_that_asks_for_the_mode() -> Case:
    return Case(_net(_Dropping(asks=True), held=True), batch=_batch())


def good_trainable_part_draws() -> Case:
    model = _net(_Dropping(asks=False))
    model[0].requires_grad_(True)
    return Case(model, batch=_batch())


def good_bert_held() -> Case:
    entry = ZOO["bert"]
    model = entry.build()
    fl.freeze(model, entry.backbone)
    return Case(model, batch=entry.batch(), compute_loss=entry.loss)
