"""Cases of FRZ105, batch-statistics-in-frozen-norm."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import live

_ONLY = frozenset({"FRZ105"})


class Own(nn.BatchNorm1d):
    """A class of the user's, with nothing changed."""


def _net(norm: nn.Module) -> nn.Sequential:
    model = live(nn.Sequential(nn.Sequential(nn.Linear(3, 2), norm), nn.Linear(2, 1)))
    model[0].requires_grad_(False)
    return model


def _untracked(norm: nn.Module) -> nn.Sequential:
    model = _net(norm)
    norm.track_running_stats = False
    return model


def bad_tracking_switched_off() -> Case:
    return Case(_untracked(nn.BatchNorm1d(2)), codes=_ONLY)


def bad_subclass_measured() -> Case:
    return Case(_untracked(Own(2)), batch=torch.randn(4, 3), codes=_ONLY)


def bad_momentum_of_zero() -> Case:
    """Its counter moves as well."""
    return Case(_net(nn.BatchNorm1d(2, momentum=0.0)), codes=_ONLY | {"FRZ101"})


def bad_in_eval_until_train() -> Case:
    return Case(_untracked(nn.BatchNorm1d(2)).eval(), codes=_ONLY)


def bad_no_statistics_at_all() -> Case:
    return Case(_net(nn.BatchNorm1d(2, track_running_stats=False)), codes=_ONLY)


def good_held() -> Case:
    model = _untracked(nn.BatchNorm1d(2))
    fl.freeze(model, "0")
    return Case(model.train(), batch=torch.randn(4, 3))


def good_batch_statistics_that_are_wanted() -> Case:
    model = _net(nn.BatchNorm1d(2))
    fl.freeze(model, "0", stats="batch")
    return Case(model.train())


def good_statistics_that_move_on_purpose() -> Case:
    model = _net(nn.BatchNorm1d(2))
    fl.freeze(model, "0", stats="update")
    return Case(model.train())


def good_cumulative_average_held() -> Case:
    model = _net(nn.BatchNorm1d(2, momentum=None))
    fl.freeze(model, "0")
    return Case(model.train())


def good_trainable() -> Case:
    model = live(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, momentum=0.0), nn.Linear(2, 1)))
    model[0].requires_grad_(False)
    return Case(model)


def good_each_sample_by_itself() -> Case:
    model = _net(nn.GroupNorm(1, 2))
    model[0].append(nn.InstanceNorm1d(2))
    return Case(model)
