"""Cases of FRZ205, optimizer-moves-without-gradient."""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl
from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ205"})


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))


def bad_frozen_in_the_middle_of_training() -> Case:
    model = _net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (model(torch.ones(3, 2)) - 1).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.zero_grad()
    model[0].requires_grad_(False)
    return Case(model, optimizer=optimizer, codes=_ONLY)


def bad_frozen_before_the_first_step() -> Case:
    model = _net()
    model[0].requires_grad_(False)
    return Case(model, optimizer=torch.optim.LBFGS(model.parameters()), codes=_ONLY)


def good_built_from_the_trainable_ones() -> Case:
    model = _net()
    model[0].requires_grad_(False)
    return Case(model, optimizer=torch.optim.LBFGS(model[2].parameters()))


def good_another_optimizer_needs_gradients() -> Case:
    model = _net()
    model[0].requires_grad_(False)
    return Case(model, optimizer=torch.optim.RMSprop(model.parameters()))


def good_held_so_that_the_step_raises() -> Case:
    model = _net()
    optimizer = torch.optim.LBFGS(model.parameters())
    fl.freeze(model, "0")
    return Case(model, optimizer=optimizer)
