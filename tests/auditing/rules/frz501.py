"""Cases of FRZ501, batchnorm-in-microbatches."""

from __future__ import annotations

from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, live

_ONLY = frozenset({"FRZ501"})


def bad_resnet() -> Case:
    return Case(ZOO["resnet18"].build(), codes=_ONLY)


def bad_one_of_two() -> Case:
    model = live(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2)))
    fl.freeze(model, "0")
    return Case(model, codes=_ONLY)


def bad_untracked() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    return Case(model, codes=_ONLY)


def good_all_frozen() -> Case:
    model = ZOO["resnet18"].build()
    fl.freeze(model, exclude="fc")
    return Case(model)


def good_in_eval_mode() -> Case:
    return Case(live(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))).eval())


def good_norms_of_a_sample() -> Case:
    return Case(nn.Sequential(nn.Conv2d(2, 2, 1), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2)))
