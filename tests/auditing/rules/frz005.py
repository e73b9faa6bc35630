"""Cases of FRZ005, stale-grad."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.optim import Optimizer

import frostline as fl
from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ005"})
Build = Callable[[nn.Module], Optimizer]


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 1))


def _adamw(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.1)


def _momentum(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def _trained(model: nn.Sequential, build: Build) -> Optimizer:
    """One step, and the gradients of the next."""
    optimizer = build(model)
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        model(torch.ones(3, 2)).sum().backward()
    return optimizer


def _frozen_with_zeros(build: Build) -> Case:
    model = _net()
    optimizer = _trained(model, build)
    model[0].requires_grad_(False)
    optimizer.zero_grad(set_to_none=False)
    return Case(model, optimizer=optimizer, codes=_ONLY)


def bad_frozen_after_backward() -> Case:
    model = _net()
    optimizer = _trained(model, lambda m: torch.optim.SGD(m.parameters(), lr=0.1))
    model[0].requires_grad_(False)
    return Case(model, optimizer=optimizer, codes=_ONLY)


def bad_zeros_and_decay() -> Case:
    return _frozen_with_zeros(_adamw)


def bad_zeros_and_momentum() -> Case:
    return _frozen_with_zeros(_momentum)


def bad_zeros_that_move_nothing_are_counted_all_the_same() -> Case:
    return _frozen_with_zeros(lambda model: torch.optim.SGD(model.parameters(), lr=0.0))


def bad_in_no_optimizer() -> Case:
    model = _net()
    model[0][0].weight.grad = torch.ones(2, 2)
    model[0].requires_grad_(False)
    return Case(model, optimizer=torch.optim.AdamW(model[1].parameters()), codes=_ONLY)


def bad_measured() -> Case:
    case = _frozen_with_zeros(_adamw)
    case.batch = torch.randn(4, 2)
    return case


def good_gradients_dropped() -> Case:
    model = _net()
    optimizer = _trained(model, _momentum)
    model[0].requires_grad_(False)
    optimizer.zero_grad()
    return Case(model, optimizer=optimizer)


def good_held_by_a_part() -> Case:
    model = _net()
    optimizer = _trained(model, _adamw)
    fl.freeze(model, "0")
    model[0][0].weight.grad = torch.ones(2, 2)
    return Case(model, optimizer=optimizer)


def good_gradient_of_what_is_trained() -> Case:
    model = _net()
    model[0].requires_grad_(False)
    optimizer = _trained(model, _adamw)
    return Case(model, optimizer=optimizer)
