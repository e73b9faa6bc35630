"""What a step changes, read off the modules, against a real forward."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

import frostline as fl
from frostline._names import named_tensors, places
from frostline._state import same_bits
from frostline.auditing.claim import claim
from frostline.auditing.gathering import gather
from frostline.auditing.reading import read
from frostline.errors import FrostlineWarning
from tests.zoo import live


class Queue(nn.Module):
    """A class that nobody registered."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.rows.mul_(0.5)
        return x


NORMS: dict[str, Callable[[], nn.Module]] = {
    "batch": lambda: nn.BatchNorm1d(4),
    "batch, momentum 0": lambda: nn.BatchNorm1d(4, momentum=0.0),
    "batch, cumulative": lambda: nn.BatchNorm1d(4, momentum=None),
    "batch, untracked": lambda: nn.BatchNorm1d(4, track_running_stats=False),
    "layer": lambda: nn.LayerNorm(4),
    "spectral": lambda: spectral_norm(nn.Linear(4, 4)),
    "max_norm": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 4)),
}


def answer(model: nn.Module, *, training: bool) -> tuple[set[str], set[str]]:
    everything = places(model)
    step = read(gather(model, everything, claim(model, None)), training=training)
    names = {id(e.tensor): e.name for e in everything.tensors}
    return {names[i] for i in step.changed}, {names[i] for i in step.undecided}


def changed(model: nn.Module) -> set[str]:
    before = {e.name: e.tensor.detach().clone() for e in named_tensors(model)}
    model(torch.randn(6, 4))
    return {e.name for e in named_tensors(model) if not same_bits(e.tensor, before[e.name])}


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NORMS)
def test_as_a_real_forward(name: str, training: bool, held: bool) -> None:
    model = live(nn.Sequential(NORMS[name](), nn.Linear(4, 1))).eval()
    if held:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FrostlineWarning)  # that it uses the batch in any mode
            fl.freeze(model, "0")
    told, undecided = answer(model, training=training)
    assert undecided == set()
    assert told == changed(model.train(training))


def test_a_class_that_nobody_knows_is_undecided() -> None:
    model = nn.Sequential(Queue(), nn.Linear(4, 1))
    assert answer(model, training=True) == (set(), {"0.rows"})
    assert answer(model, training=False) == (set(), {"0.rows"})  # its modes are those of now
    assert answer(model.eval(), training=False) == (set(), set())


def test_what_moves_surely_is_not_undecided_as_well() -> None:
    model = nn.Sequential(nn.Linear(2, 1))
    key = id(model[0].weight)
    step = read([], training=True, moved=[key], undecided={key: "whatever"})
    assert (step.changed, step.undecided) == ({key}, {})
