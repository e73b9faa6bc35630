"""Cases of FRZ204, foreign-param-in-optimizer."""

from __future__ import annotations

import torch
from torch import nn

from tests.auditing.cases import Case
from tests.zoo import ZOO, live

_BOTH = frozenset({"FRZ204", "FRZ202"})


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def bad_new_head() -> Case:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[1] = nn.Linear(2, 1)
    return Case(model, optimizer=optimizer, codes=_BOTH)


def bad_parameter_wrapped_again() -> Case:
    model = _net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model[0].weight = nn.Parameter(model[0].weight.detach())
    return Case(model, optimizer=optimizer, codes=_BOTH)


def bad_norms_swapped_for_frozen_ones() -> Case:
    """timm's swap leaves parameters behind, and makes buffers of them."""
    from timm.utils.model import freeze_batch_norm_2d

    model = ZOO["mobilenetv3"].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Case(freeze_batch_norm_2d(model), optimizer=optimizer, codes=frozenset({"FRZ204"}))


def bad_loss_with_parameters() -> Case:
    """To be known, and no more."""
    model, loss = _net(), nn.Bilinear(2, 2, 3)
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    return Case(model, optimizer=optimizer, codes=frozenset({"FRZ204"}))


def bad_as_large_as_a_frozen_one() -> Case:
    """A frozen parameter of this shape is no sign of a swap; one that informs."""
    model, loss = _net(), nn.Linear(2, 2)
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD([*model[1].parameters(), *loss.parameters()], lr=0.1)
    return Case(model, optimizer=optimizer, codes=frozenset({"FRZ204"}))


def bad_as_large_as_one_that_is_stepped() -> Case:
    model, loss = _net(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
    return Case(model, optimizer=optimizer, codes=frozenset({"FRZ204"}))


def bad_of_another_shape_than_what_is_left_out() -> Case:
    model, loss = _net(), nn.Linear(5, 3)
    optimizer = torch.optim.SGD([*model[0].parameters(), *loss.parameters()], lr=0.1)
    return Case(model, optimizer=optimizer, codes=_BOTH)


def good_its_own() -> Case:
    model = _net()
    return Case(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def good_swapped_and_built_after() -> Case:
    model = _net()
    model[1] = nn.Linear(2, 1)
    return Case(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def good_moved_and_cast() -> Case:
    """A parameter stays the object that it was."""
    model = live(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Case(model.double().to("cpu"), optimizer=optimizer)
