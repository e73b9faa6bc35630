"""Cases of FRZ001, flag-on-module."""

from __future__ import annotations

from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, live

_ONLY = frozenset({"FRZ001"})


class Configured(nn.Module):
    """Keeps the word for a purpose of its own, and acts on it."""

    def __init__(self, requires_grad: bool) -> None:
        super().__init__()
        self.requires_grad = requires_grad
        self.layer = nn.Linear(2, 2)
        self.layer.requires_grad_(requires_grad)


def _net() -> nn.ModuleDict:
    trunk = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    return nn.ModuleDict({"trunk": trunk, "trunk2": nn.Linear(2, 2), "head": nn.Linear(2, 1)})


def bad_backbone() -> Case:
    model = _net()
    model["trunk"].requires_grad = False
    return Case(model, codes=_ONLY)


def bad_every_module_in_a_loop() -> Case:
    model = _net()
    for module in model["trunk"].modules():
        module.requires_grad = False
    return Case(model, codes=_ONLY)


def bad_whole_model_and_a_head_that_is_meant_to_train() -> Case:
    """As FixRes froze EfficientNet."""
    model = ZOO["resnet18"].build()
    model.requires_grad = False
    model.fc.requires_grad = True
    return Case(model, codes=_ONLY)


def bad_one_trainable_parameter_is_left() -> Case:
    model = _net()
    model["trunk"].requires_grad = False
    model["trunk"].requires_grad_(False)
    model["trunk"][2].bias.requires_grad_(True)
    return Case(model, codes=_ONLY)


def good_method() -> Case:
    model = _net()
    model["trunk"].requires_grad_(False)
    return Case(model)


def good_attribute_that_says_what_is_so() -> Case:
    model = _net()
    model["trunk"].requires_grad = False
    model["trunk"].requires_grad_(False)
    return Case(model)


def good_attribute_of_the_class_itself() -> Case:
    return Case(nn.Sequential(Configured(False), Configured(True)))


def good_no_flag_but_a_word() -> Case:
    model = _net()
    model["trunk"].requires_grad = "auto"
    return Case(model)


def good_inner_module_says_otherwise() -> Case:
    model = live(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Linear(2, 1)))
    model.requires_grad = False
    model[1].requires_grad = True
    fl.freeze(model, "0")
    return Case(model)
