"""Cases of FRZ403, moving-statistics-under-adapter."""

from __future__ import annotations

from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.auditing.rules.frz303 import adapted
from tests.zoo import ZOO, live

_NOW = frozenset({"FRZ403", "FRZ101"})


def _net() -> nn.Module:
    return live(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)))


def bad_convolutions() -> Case:
    return Case(adapted(ZOO["resnet18"].build(), "conv1"), codes=_NOW)


def bad_one_norm() -> Case:
    return Case(adapted(_net(), "0"), codes=_NOW)


def bad_after_train() -> Case:
    model = adapted(_net(), "0").eval()
    return Case(model, codes=frozenset({"FRZ403", "FRZ102"}))


def good_held() -> Case:
    model = adapted(_net(), "0")
    fl.freeze(model, "1")
    return Case(model)


def good_saved_beside_the_adapter() -> Case:
    model = adapted(_net(), "0", modules_to_save=["1"])
    fl.freeze(model, nn.BatchNorm2d, mode="eval", exclude=lambda name, _: "modules_to_save" in name)
    return Case(model)


def good_layer_norm() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    return Case(adapted(model, "0"))


def good_no_adapter() -> Case:
    model = _net()
    fl.freeze(model, "1")
    return Case(model)
