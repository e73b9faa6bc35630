"""Cases of FRZ301, tied-across-boundary."""

from __future__ import annotations

import torch
from torch import nn

from tests.auditing.cases import Case
from tests.zoo import ZOO

_ONLY = frozenset({"FRZ301"})


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def bad_frozen_embedding_freezes_the_head() -> Case:
    model = Tied()
    model.embed.requires_grad_(False)
    return Case(model, frozen="embed", codes=_ONLY)


def bad_trained_head_trains_the_embedding() -> Case:
    return Case(Tied(), frozen="embed", codes=frozenset({"FRZ301", "FRZ003"}))


def bad_gpt2() -> Case:
    model = ZOO["gpt2"].build()
    model.transformer.requires_grad_(False)
    return Case(model, frozen="transformer.wte", codes=_ONLY)


def good_both_places_are_claimed() -> Case:
    model = Tied()
    model.embed.requires_grad_(False)
    return Case(model, frozen=["embed", "head"])


def good_equal_values_in_two_objects() -> Case:
    model = Tied()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    model.embed.requires_grad_(False)
    return Case(model, frozen="embed")


def good_tied_outside_of_what_is_claimed() -> Case:
    model = Tied()
    model.body.requires_grad_(False)
    return Case(model, frozen="body", optimizer=torch.optim.AdamW([model.embed.weight]))
