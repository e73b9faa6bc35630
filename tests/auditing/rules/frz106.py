"""Cases of FRZ106, embedding-max-norm."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl
from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ106"})
_IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


class Words(nn.Embedding):
    """A class of the user's."""


def _net(embedding: nn.Module) -> nn.Sequential:
    model = nn.Sequential(embedding, nn.Linear(4, 1))
    embedding.requires_grad_(False)
    return model


def bad_embedding() -> Case:
    return Case(_net(nn.Embedding(10, 4, max_norm=0.1)), codes=_ONLY)


def bad_embedding_measured_in_eval() -> Case:
    return Case(_net(nn.Embedding(10, 4, max_norm=0.1)).eval(), batch=_IDS, codes=_ONLY)


def bad_bag() -> Case:
    return Case(_net(nn.EmbeddingBag(10, 4, max_norm=0.1)), batch=_IDS, codes=_ONLY)


def bad_subclass() -> Case:
    return Case(_net(Words(10, 4, max_norm=0.1)), codes=_ONLY)


def good_held() -> Case:
    model = _net(nn.Embedding(10, 4, max_norm=0.1))
    fl.freeze(model, "0")
    return Case(model, batch=_IDS)


def good_held_with_the_modes_of_the_rest() -> Case:
    model = _net(nn.Embedding(10, 4, max_norm=0.1))
    fl.freeze(model, "0", mode="follow")
    return Case(model, batch=_IDS)


def good_every_row_is_short_enough() -> Case:
    return Case(_net(nn.Embedding(10, 4, max_norm=100.0)))


def good_only_rows_that_are_not_looked_up_are_too_long() -> Case:
    embedding = nn.Embedding(10, 4, max_norm=1.0)
    embedding.weight.data.fill_(0.1)[0] = 7.0
    return Case(_net(embedding), batch=_IDS)


def good_no_limit() -> Case:
    return Case(_net(nn.Embedding(10, 4)), batch=_IDS)


def good_trainable() -> Case:
    return Case(nn.Sequential(nn.Embedding(10, 4, max_norm=0.1), nn.Linear(4, 1)))
