"""Cases of FRZ401, state-outside-checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.cases import Case
from tests.zoo import live


class Counting(nn.Module):
    """Counts its calls in a plain attribute, in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.calls = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


class Rotary(nn.Module):
    """Keeps frequencies that nobody changes outside of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("frequencies", torch.tensor([1.0, 0.1]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.frequencies


def _volatile() -> nn.Sequential:
    model = live(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)))
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        model[0].register_buffer(name, getattr(model[0], name), persistent=False)
    model[0].requires_grad_(False)
    return model


def bad_statistics_now() -> Case:
    return Case(_volatile(), codes=frozenset({"FRZ401", "FRZ101"}))


def bad_statistics_after_train() -> Case:
    return Case(_volatile().eval(), codes=frozenset({"FRZ401", "FRZ102"}))


def bad_plain_attribute() -> Case:
    model = nn.Sequential(Counting(), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    return Case(model, batch=torch.randn(4, 2), codes=frozenset({"FRZ401", "FRZ108"}))


def good_held() -> Case:
    model = _volatile()
    fl.freeze(model, "0")
    return Case(model)


def good_constant() -> Case:
    model = nn.Sequential(Rotary(), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    return Case(model, batch=torch.randn(4, 2))


def good_attribute_of_what_is_trained() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), Counting())
    model[0].requires_grad_(False)
    return Case(model, batch=torch.randn(4, 2))
