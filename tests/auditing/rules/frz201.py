"""Cases of FRZ201, frozen-param-in-optimizer."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, live

_ONLY = frozenset({"FRZ201"})


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def bad_built_before_the_freeze() -> Case:
    """With state, and inert all the same."""
    model = _net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model[0].requires_grad_(False)
    return Case(model, optimizer=optimizer, codes=_ONLY)


def bad_every_script_that_passes_all_parameters() -> Case:
    model = ZOO["vit_tiny"].build()
    fl.freeze(model, exclude="head")
    return Case(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), codes=_ONLY)


def bad_one_bias() -> Case:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model[0].bias.requires_grad_(False)
    return Case(model, optimizer=optimizer, codes=_ONLY)


def good_filtered() -> Case:
    model = _net()
    model[0].requires_grad_(False)
    return Case(
        model, optimizer=torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    )


def good_frozen_statistics_are_no_parameters() -> Case:
    model = live(nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.Linear(2, 1)))
    fl.freeze(model, "0")
    return Case(model, optimizer=torch.optim.AdamW(model.parameters()))


def good_frozen_in_another_model() -> Case:
    model, other = _net(), _net()
    other.requires_grad_(False)
    return Case(model, optimizer=torch.optim.AdamW(model.parameters()))
