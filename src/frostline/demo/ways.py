"""Four ways in which people keep a part of a network as it is, and the loop that tests them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from frostline.demo.digits import Digits
from frostline.demo.nets import TwoBranches
from frostline.freezing import freeze
from frostline.selection import FLAGGED

BATCH = 64
LEARNING_RATE = 1e-3


def _nothing(model: TwoBranches) -> None:
    pass


def _eval_frozen(model: TwoBranches) -> None:
    model.trunk.eval()
    model.main.eval()


def _freeze_flagged(model: TwoBranches) -> None:
    freeze(model, FLAGGED)


@dataclass(frozen=True)
class Way:
    """One way of keeping the trunk and the main branch as they are.

    Attributes:
        key: its name in JSON.
        letter: a, b, c or d.
        title: a few words.
        code: what one writes, beside ``requires_grad_(False)``.
        once: done before the loop.
        each_epoch: done after each ``model.train()``.
    """

    key: str
    letter: str
    title: str
    code: str
    once: Callable[[TwoBranches], object]
    each_epoch: Callable[[TwoBranches], object]


WAYS = (
    Way("flag", "a", "flag only", "(nothing more)", _nothing, _nothing),
    Way(
        "eval_once", "b", ".eval() once", "frozen.eval()  # before the loop", _eval_frozen, _nothing
    ),
    Way(
        "eval_each_epoch",
        "c",
        ".eval() each epoch",
        "frozen.eval()  # after each model.train()",
        _nothing,
        _eval_frozen,
    ),
    Way("freeze", "d", "fl.freeze", "fl.freeze(model, fl.FLAGGED)", _freeze_flagged, _nothing),
)


def set_flags(model: TwoBranches) -> None:
    """What all four ways do: no gradients for the trunk and the main branch."""
    model.trunk.requires_grad_(False)
    model.main.requires_grad_(False)


def train_second_branch(
    model: TwoBranches, way: Way, data: Digits, epochs: int, shuffle: torch.Generator
) -> Iterator[bool]:
    """Train the second branch to tell odd from even; yield after each epoch.

    What is yielded: whether a norm of the frozen trunk was in training mode in that epoch.
    """
    optimizer = torch.optim.Adam(model.second.parameters(), lr=LEARNING_RATE)
    way.once(model)
    for _ in range(epochs):
        model.train()
        way.each_epoch(model)
        training = any(norm.training for norm in model.norms())
        for index in torch.randperm(len(data), generator=shuffle).split(BATCH):
            scores = model(data.images[index], branch="second")
            loss = functional.cross_entropy(scores, data.labels[index] % 2)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        yield training


def undoing_line() -> tuple[str, str]:
    """Where the loop above undoes ``.eval()``: file and line, and the text of the line.

    Example:
        >>> undoing_line()[1]
        'model.train()'
    """
    lines, start = inspect.getsourcelines(train_second_branch)
    offset = next(i for i, line in enumerate(lines) if line.strip() == "model.train()")
    return f"frostline/demo/ways.py:{start + offset}", lines[offset].strip()
