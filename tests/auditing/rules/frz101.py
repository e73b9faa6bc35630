"""Cases of FRZ101, batchnorm-stats-update."""

from __future__ import annotations

from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, live

_ONLY = frozenset({"FRZ101"})


def _net(norm: nn.Module) -> nn.Module:
    model = live(nn.Sequential(nn.Sequential(nn.Linear(3, 2), norm), nn.Linear(2, 1)))
    model[0].requires_grad_(False)
    return model


def bad_resnet_by_flag() -> Case:
    model = ZOO["resnet18"].build()
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    return Case(model, codes=_ONLY)


def bad_one_dimension() -> Case:
    return Case(_net(nn.BatchNorm1d(2)), codes=_ONLY)


def bad_without_parameters_of_its_own() -> Case:
    return Case(_net(nn.BatchNorm1d(2, affine=False)), codes=_ONLY)


def bad_cumulative_average() -> Case:
    return Case(_net(nn.BatchNorm1d(2, momentum=None)), codes=_ONLY)


def bad_claimed_by_name() -> Case:
    model = _net(nn.BatchNorm1d(2))
    model.requires_grad_(True)
    return Case(model, frozen="0.1", codes=frozenset({"FRZ101", "FRZ003"}))


def bad_instance_norm_that_tracks() -> Case:
    model = live(nn.Sequential(nn.Conv2d(3, 2, 1), nn.InstanceNorm2d(2, track_running_stats=True)))
    model.append(nn.Linear(4, 1))
    model[0].requires_grad_(False)
    return Case(model, frozen=["0", "1"], codes=_ONLY)


def bad_only_the_near_name_is_held() -> Case:
    model = nn.ModuleDict({"trunk": _net(nn.BatchNorm1d(2)), "trunk2": _net(nn.BatchNorm1d(2))})
    fl.freeze(model, "trunk2")
    return Case(model, codes=_ONLY)


def good_held() -> Case:
    model = _net(nn.BatchNorm1d(2))
    fl.freeze(model, "0")
    return Case(model)


def good_statistics_that_move_on_purpose() -> Case:
    model = _net(nn.BatchNorm1d(2))
    fl.freeze(model, "0", stats="update")
    return Case(model)


def good_trainable() -> Case:
    return Case(live(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))))


def good_layer_norm() -> Case:
    return Case(_net(nn.LayerNorm(2)))
