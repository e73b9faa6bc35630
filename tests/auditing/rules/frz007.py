"""Cases of FRZ007, identity-statistics."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn

import frostline as fl
from frostline.errors import FrostlineWarning
from tests.auditing.cases import Case
from tests.zoo import ZOO, live

_ONLY = frozenset({"FRZ007"})


def _net(norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 2, 1), norm, nn.Flatten())


def _freeze(model: nn.Module, *what: Any, **options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrostlineWarning)  # which says the same
        fl.freeze(model, *what, **options)


def bad_new_norm() -> Case:
    model = _net(nn.BatchNorm2d(2))
    _freeze(model, "1")
    return Case(model, codes=_ONLY)


def bad_reset_norms_of_a_resnet() -> Case:
    """As swa_utils.update_bn leaves those that are in eval mode."""
    model = ZOO["resnet18"].build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    _freeze(model, exclude="fc")
    return Case(model, codes=_ONLY)


def bad_without_a_counter() -> Case:
    norm = nn.BatchNorm2d(2)
    norm.num_batches_tracked = None
    model = _net(norm)
    _freeze(model, "1")
    return Case(model, codes=_ONLY)


def bad_beside_one_that_lived() -> Case:
    model = nn.ModuleDict(
        {"trunk": _net(nn.BatchNorm2d(2)), "trunk2": live(_net(nn.BatchNorm2d(2)))}
    )
    _freeze(model, ["trunk", "trunk2"])
    return Case(model, codes=_ONLY)


def good_lived() -> Case:
    model = live(_net(nn.BatchNorm2d(2)))
    _freeze(model, "1")
    return Case(model)


def good_counted_though_the_values_are_those() -> Case:
    """Batches that were standardised before."""
    norm = nn.BatchNorm2d(2)
    norm.num_batches_tracked.fill_(10)
    model = _net(norm)
    _freeze(model, "1")
    return Case(model)


def good_one_channel_differs() -> Case:
    norm = nn.BatchNorm2d(2)
    norm.running_mean[1] = 1e-6
    model = _net(norm)
    _freeze(model, "1")
    return Case(model)


def good_trainable() -> Case:
    return Case(_net(nn.BatchNorm2d(2)))


def good_nothing_tracked() -> Case:
    model = _net(nn.GroupNorm(1, 2))
    _freeze(model, "1")
    return Case(model)


def good_on_the_meta_device() -> Case:
    with torch.device("meta"):
        model = _net(nn.BatchNorm2d(2))
    model[1].requires_grad_(False).eval()
    _freeze(model, "1", seal=False)
    return Case(model)
