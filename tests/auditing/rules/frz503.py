"""Cases of FRZ503, batch-dependent-frozen-part."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import live, seeded

_ONLY = frozenset({"FRZ503"})


class _Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


class _CentredInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.training else x


class _PerSample(nn.Module):
    """The same numbers, of each sample by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(1, keepdim=True)


def _net(middle: nn.Module) -> nn.Sequential:
    with seeded(0):
        model = live(nn.Sequential(nn.Linear(4, 4), middle, nn.Linear(4, 2)))
    model[:2].requires_grad_(False)
    return model


def _batch() -> Tensor:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


def bad_mean_over_the_batch() -> Case:
    return Case(_net(_Centred()), frozen=["0", "1"], batch=_batch(), codes=_ONLY)


def bad_held_and_mixing_all_the_same() -> Case:
    model = _net(_Centred())
    fl.freeze(model, ["0", "1"])
    return Case(model, batch=_batch(), codes=_ONLY)


def bad_in_training_mode_only() -> Case:
    model = _net(_CentredInTraining())
    model[1].eval()
    return Case(model, frozen=["0", "1"], batch=_batch(), codes=_ONLY)


def good_each_sample_by_itself() -> Case:
    return Case(_net(_PerSample()), frozen=["0", "1"], batch=_batch())


def good_trainable_part_mixes() -> Case:
    return Case(_net(_Centred()), frozen="0", batch=_batch())


def good_in_training_mode_only_and_held() -> Case:
    model = _net(_CentredInTraining())
    fl.freeze(model, ["0", "1"])
    return Case(model, batch=_batch())
