"""Cases of FRZ008, lazy-parameter."""

from __future__ import annotations

import torch
from torch import nn

from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ008"})


def _frozen(layer: nn.Module) -> nn.Sequential:
    for parameter in layer.parameters():  # requires_grad_() raises for those without a shape
        parameter.requires_grad = False
    return nn.Sequential(layer, nn.Linear(2, 1))


def bad_linear() -> Case:
    return Case(_frozen(nn.LazyLinear(2)), codes=_ONLY)


def bad_convolution_with_a_batch() -> Case:
    return Case(_frozen(nn.LazyConv1d(2, 1)), batch=torch.randn(2, 3, 2), codes=_ONLY)


def good_filled() -> Case:
    model = _frozen(nn.LazyLinear(2))
    model(torch.randn(4, 3))
    return Case(model)


def good_lazy_and_trainable() -> Case:
    model = nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(2))
    model[0].requires_grad_(False)
    return Case(model)
