"""Cases of FRZ003, claimed-but-trainable."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, live

_ONLY = frozenset({"FRZ003"})


def _net() -> nn.ModuleDict:
    return nn.ModuleDict({
        "trunk": nn.Linear(2, 2), "trunk2": nn.Linear(2, 2), "head": nn.Linear(2, 1),
    })  # fmt: skip


class WithToken(nn.Module):
    """Has a parameter at the root."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 2))
        self.body = nn.Linear(2, 2)


def bad_claimed_by_name() -> Case:
    return Case(_net(), frozen="trunk", codes=_ONLY)


def bad_frozen_by_leaving_it_out_of_the_optimizer() -> Case:
    model = _net()
    optimizer = torch.optim.AdamW([*model["trunk2"].parameters(), *model["head"].parameters()])
    return Case(model, frozen="trunk", optimizer=optimizer, codes=_ONLY)


def bad_parameter_of_the_root() -> Case:
    model = WithToken()
    model.body.requires_grad_(False)
    return Case(model, frozen=["cls_token", "body"], codes=_ONLY)


def bad_two_that_share_memory() -> Case:
    """What is claimed moves because it trains, whomever it shares its bytes with."""
    model = _net()
    model["trunk2"].weight.data = model["trunk"].weight.data
    return Case(model, frozen=["trunk", "trunk2"], codes=_ONLY)


def bad_switched_on_again_in_a_part() -> Case:
    """As a trainer that makes all parameters trainable does."""
    model = _net()
    fl.freeze(model, "trunk")
    for parameter in model.parameters():
        parameter.requires_grad = True
    return Case(model, codes=_ONLY)


def bad_vision_transformer() -> Case:
    model = ZOO["vit_tiny"].build()
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    model.blocks[1].requires_grad_(True)
    return Case(model, frozen=lambda name, module: name.startswith("blocks"), codes=_ONLY)


def good_claim_and_flags_agree() -> Case:
    model = _net()
    model["trunk"].requires_grad_(False)
    return Case(model, frozen="trunk")


def good_without_a_claim() -> Case:
    return Case(_net())


def good_statistics_alone_are_frozen() -> Case:
    """The part leaves the parameters of its norm trainable, on purpose."""
    model = live(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)))
    fl.freeze(model, "1", params=False)
    return Case(model)


def good_undone() -> Case:
    model = _net()
    fl.freeze(model, "trunk").undo()
    return Case(model)
