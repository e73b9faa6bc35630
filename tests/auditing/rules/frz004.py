"""Cases of FRZ004, partly-frozen-module."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import ZOO, live

_ONLY = frozenset({"FRZ004"})


class Encoder(nn.Module):
    """Has a parameter of its own beside its blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 4))
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 2)


def bad_vit_by_its_children() -> Case:
    """As a loop over named_children does, and timm's freeze."""
    from timm.utils import freeze

    model = ZOO["vit_tiny"].build()
    freeze(model, [name for name, _ in model.named_children() if name != "head"])
    return Case(model, codes=_ONLY)


def bad_token_of_an_inner_module() -> Case:
    model = nn.Sequential(Encoder(), nn.Linear(2, 2))
    model[0].blocks.requires_grad_(False)
    return Case(model, codes=_ONLY)


def bad_biases_alone() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))
    model.requires_grad_(False)
    for layer in model:
        layer.bias.requires_grad_(True)
    return Case(model, codes=_ONLY)


def bad_half_of_a_norm() -> Case:
    model = live(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)))
    model[1].weight.requires_grad_(False)
    return Case(model, codes=_ONLY)


def bad_half_of_an_attention_that_drops() -> Case:
    model = nn.Sequential(nn.MultiheadAttention(4, 2, dropout=0.1), nn.Linear(4, 1))
    model[0].in_proj_weight.requires_grad_(False)
    return Case(model, codes=_ONLY)


def good_all_of_it() -> Case:
    model = ZOO["vit_tiny"].build()
    fl.freeze(model, exclude="head")
    return Case(model)


def good_nothing_below_is_frozen() -> Case:
    model = Encoder()
    model.cls_token.requires_grad_(False)
    return Case(model)


def good_half_of_the_blocks_below_are_trainable() -> Case:
    model = Encoder()
    model.blocks[0].requires_grad_(False)
    return Case(model)


def good_some_blocks() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    return Case(model)


def good_norm_without_a_shift() -> Case:
    model = live(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2, bias=False), nn.Linear(2, 1)))
    model[1].requires_grad_(False)
    return Case(model)
