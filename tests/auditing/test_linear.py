"""The audit's cost grows with the model and not faster: calls are counted, and not seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from tests.zoo import live


def layers(count: int) -> nn.Module:
    """Blocks of four modules; of each the norm and the linear layer are frozen by flags."""
    blocks = [
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.1), nn.Linear(2, 2))
        for _ in range(count // 5)
    ]
    for block in blocks:
        block[:3].requires_grad_(False)
    return live(nn.Sequential(*blocks)).train()


def leaking(count: int) -> dict[str, Any]:
    """Flags alone, and an optimizer over everything with gradients from before: all leaks."""
    model = layers(count)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), weight_decay=0.1)}


def held(count: int) -> dict[str, Any]:
    """The right way: nothing leaks, and the optimizer has the trainable parameters alone."""
    model = layers(count)
    fl.freeze(model, fl.FLAGGED, seal=False)
    return {"model": model, "optimizer": torch.optim.AdamW(fl.param_groups(model, 1e-3))}


def claimed_wrongly(count: int) -> dict[str, Any]:
    """Nothing is frozen, all is claimed, and the optimizer has half of it."""
    model = layers(count).requires_grad_(True)
    half = list(model.parameters())[::2]
    return {"model": model, "optimizer": torch.optim.SGD(half, lr=0.1), "frozen": nn.Module}


def deep(count: int) -> dict[str, Any]:
    """One chain: each module hangs in the one before."""
    model: nn.Module = nn.BatchNorm1d(2)
    for _ in range(count // 10):
        model = nn.Sequential(model, nn.BatchNorm1d(2))
    return {"model": live(model).requires_grad_(False).train()}


def calls(act: Callable[[], object]) -> int:
    """How many functions of Python and of C are called.

    Not counted: torch's walk over modules, which resumes a generator for each level above.
    """
    count = 0

    def note(frame: FrameType, event: str, _: object) -> None:
        nonlocal count
        count += event in ("call", "c_call") and frame.f_code.co_name != "named_modules"

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def cost(make: Callable[[int], dict[str, Any]], count: int) -> int:
    given = make(count)
    model = given.pop("model")
    fl.audit(model, **given)  # what is loaded and looked up once
    return calls(lambda: fl.audit(model, **given))


@pytest.mark.parametrize("make", [leaking, held, claimed_wrongly, deep])
def test_twice_the_modules_cost_at_most_twice_the_calls(make: Callable[[int], Any]) -> None:
    small, large = cost(make, 200), cost(make, 400)
    assert large < 2.1 * small


def test_quadratic_work_is_seen() -> None:
    """The measure itself: a loop over pairs does not pass."""

    def pairs(count: int) -> int:
        numbers = range(count)
        return calls(lambda: [abs(a - b) for a in numbers for b in numbers])

    assert pairs(200) > 2.1 * pairs(100)


def test_printing_is_linear_too() -> None:
    def printed(count: int) -> int:
        given = leaking(count)
        report = fl.audit(given.pop("model"), **given)
        str(report), report.to_dict()
        return calls(lambda: (str(report), report.to_dict()))

    assert printed(400) < 2.1 * printed(200)
