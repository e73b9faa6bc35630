"""Cases of FRZ104, power-iteration-update."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

import frostline as fl
from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ104"})


def _net(layer: nn.Module) -> nn.Sequential:
    model = nn.Sequential(nn.Sequential(layer), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    return model


class Fixed(nn.Linear):
    """A near miss: divided by an estimate made once, in a buffer called like theirs."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.register_buffer("_u", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self._u.norm()


def bad_parametrisation() -> Case:
    return Case(_net(parametrizations.spectral_norm(nn.Linear(4, 4))), codes=_ONLY)


def bad_parametrisation_measured() -> Case:
    model = _net(parametrizations.spectral_norm(nn.Linear(4, 4)))
    return Case(model, batch=torch.randn(4, 4), codes=_ONLY)


def bad_old_hook() -> Case:
    return Case(_net(spectral_norm(nn.Linear(4, 4))), codes=_ONLY)


def bad_old_hook_on_an_embedding() -> Case:
    return Case(_net(spectral_norm(nn.Embedding(5, 4))), codes=_ONLY)


def good_held() -> Case:
    model = _net(parametrizations.spectral_norm(nn.Linear(4, 4)))
    fl.freeze(model, "0")
    return Case(model.train(), batch=torch.randn(4, 4))


def good_old_hook_held() -> Case:
    model = _net(spectral_norm(nn.Linear(4, 4)))
    fl.freeze(model, "0", mode="eval")
    return Case(model.train(), batch=torch.randn(4, 4))


def good_held_with_the_modes_of_the_rest() -> Case:
    model = _net(parametrizations.spectral_norm(nn.Linear(4, 4)))
    fl.freeze(model, "0", mode="follow")
    return Case(model.train(), batch=torch.randn(4, 4))


def good_trainable() -> Case:
    return Case(nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 1)))


def good_nothing_iterates() -> Case:
    return Case(_net(Fixed()), batch=torch.randn(4, 4))


def good_weight_norm() -> Case:
    return Case(_net(parametrizations.weight_norm(nn.Linear(4, 4))), batch=torch.randn(4, 4))
