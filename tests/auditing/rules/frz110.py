"""Cases of FRZ110, patched-train."""

from __future__ import annotations

from typing import Any

from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import live

_ONLY = frozenset({"FRZ110"})


def disabled_train(self: Any, mode: bool = True) -> Any:
    """Overwrite model.train with this function to make sure that the mode does not change."""
    return self


def _net() -> nn.Module:
    trunk = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model = live(nn.ModuleDict({"trunk": trunk, "trunk2": nn.Linear(2, 1)}))
    model["trunk"].requires_grad_(False).eval()
    return model


class Steady(nn.Sequential):
    """A near miss: a method of the class, which copies, pickles and binds."""

    def train(self, mode: bool = True) -> Steady:
        return super().train(False)


def bad_disabled_train() -> Case:
    model = _net()
    model["trunk"].train = disabled_train
    return Case(model, codes=_ONLY)


def bad_lambda() -> Case:
    model = _net()
    model["trunk"].train = lambda _: None
    return Case(model, codes=_ONLY)


def bad_deep_in_the_part() -> Case:
    model = _net()
    model["trunk"][1].train = lambda mode=True: None
    return Case(model, codes=_ONLY)


def bad_eval_on_the_model_itself() -> Case:
    model = _net()
    model.requires_grad_(False).eval()
    model.train = lambda mode=True: model
    return Case(model, codes=_ONLY)


def good_method_of_the_class() -> Case:
    model = live(nn.Sequential(Steady(nn.Linear(3, 2), nn.BatchNorm1d(2)), nn.Linear(2, 1)))
    model[0].requires_grad_(False).eval()
    return Case(model)


def good_held() -> Case:
    model = _net()
    fl.freeze(model, "trunk")
    return Case(model.train())


def good_patched_where_nothing_is_frozen() -> Case:
    model = _net()
    fl.freeze(model, "trunk")
    model["trunk2"].train = disabled_train
    return Case(model)
