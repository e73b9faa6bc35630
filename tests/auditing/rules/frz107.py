"""Cases of FRZ107, active-observer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.ao.nn import qat
from torch.ao.quantization import (
    FakeQuantize,
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    disable_observer,
    get_default_qat_qconfig,
)

import frostline as fl
from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ107"})


def _net(*watching: nn.Module) -> nn.Sequential:
    """Observers that have seen something else already."""
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), *watching), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    model(_batch(0) / 3)
    return model


def _batch(seed: int = 1) -> Tensor:
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))


def _fake() -> nn.Module:
    return FakeQuantize(MovingAverageMinMaxObserver)


def _quantised_linear() -> nn.Module:
    return qat.Linear(4, 4, qconfig=get_default_qat_qconfig("x86"))


def bad_fake_quantisation() -> Case:
    return Case(_net(_fake()), codes=_ONLY)


def bad_fake_quantisation_measured_in_eval() -> Case:
    return Case(_net(_fake()).eval(), batch=_batch(), codes=_ONLY)


def bad_quantised_layer() -> Case:
    return Case(_net(_quantised_linear()), codes=_ONLY)


def bad_observer_alone() -> Case:
    return Case(_net(MinMaxObserver()), codes=_ONLY)


def bad_histogram() -> Case:
    return Case(_net(HistogramObserver()), batch=_batch(), codes=_ONLY)


def good_held() -> Case:
    model = _net(_fake(), MinMaxObserver(), _quantised_linear())
    fl.freeze(model, "0")
    return Case(model.train(), batch=_batch())


def good_held_with_the_modes_of_the_rest() -> Case:
    model = _net(_fake())
    fl.freeze(model, "0", mode="follow")
    return Case(model.train())


def good_observer_of_a_frozen_weight() -> Case:
    """It sees the same weight each time."""
    return Case(_net(_quantised_linear()), batch=_batch())


def good_switched_off() -> Case:
    model = _net(_fake(), _quantised_linear())
    model.apply(disable_observer)
    return Case(model, batch=_batch())


def good_switched_off_by_reading() -> Case:
    model = _net(_fake())
    model.apply(disable_observer)
    return Case(model)


def good_observer_of_what_is_trainable() -> Case:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), _fake()))
    model[0].requires_grad_(False)
    return Case(model)
