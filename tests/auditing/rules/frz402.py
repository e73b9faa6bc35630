"""Cases of FRZ402, changed-since-freeze."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, live

_ONLY = frozenset({"FRZ402"})


def _net() -> nn.Sequential:
    return live(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)))


def bad_loaded_after_the_freeze() -> Case:
    model = ZOO["resnet18"].build()
    fl.freeze(model, exclude="fc")
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    return Case(model, codes=_ONLY)


def bad_one_element() -> Case:
    model = _net()
    fl.freeze(model, ["0", "1"])
    model[0].weight.data[1, 1] += 1
    return Case(model, codes=_ONLY)


def bad_in_one_of_two_parts() -> Case:
    model = _net()
    fl.freeze(model, "0")
    fl.freeze(model, "1")
    model[1].running_mean += 1
    return Case(model, codes=_ONLY)


def good_as_it_was() -> Case:
    model = _net()
    fl.freeze(model, ["0", "1"])
    return Case(model)


def good_sealed_again() -> Case:
    model = _net()
    part = fl.freeze(model, ["0", "1"])
    model[0].weight.data += 1
    part.seal()
    return Case(model)


def good_never_sealed() -> Case:
    model = _net()
    fl.freeze(model, ["0", "1"], seal=False)
    model[0].weight.data += 1
    return Case(model)


def good_the_same_bytes_written() -> Case:
    model = _net()
    fl.freeze(model, ["0", "1"])
    model.load_state_dict(model.state_dict())
    return Case(model)


def good_on_the_meta_device() -> Case:
    model = _net()
    fl.freeze(model, ["0", "1"])
    return Case(model.to("meta"))


def good_only_cast() -> Case:
    model = _net()
    fl.freeze(model, ["0", "1"])
    return Case(model.to(torch.float64))
