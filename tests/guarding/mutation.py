"""What a mutation is: one way in which a frozen tensor changes, or seems to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.guarding.subjects import Place, Run

Deed = Callable[[Run], object]
Says = Literal["drift", "cast", "replaced", "nothing"]

BASIC = ("cnn", "transformer", "lstm", "tied")
CNN = ("cnn",)

IN_PLACE = frozenset({"pages", "content", "full check"})
ELSEWHERE = frozenset({"identity", "full check"})
FROM_OUTSIDE = frozenset({"content", "full check"})
UNSEEN: frozenset[str] = frozenset()


class Mutation(NamedTuple):
    """One way in which a frozen tensor changes, or seems to.

    Attributes:
        name: what is done.
        do: does it, once.
        seen: the tiers that see it, each looking alone; the others have to be silent.
        cause: what the cause has to say unless it only says how it was written; a pattern.
        says: what a guard reports.
        models: names of the subjects that it fits.
        place: where in the loop it is done.
        before: what was there before the guard.
        optimizer: steps on everything, in the place of the one of the head.
        note: what is in the notes of the report.
        latest: steps after it at which the cheap tiers have to know.
        frees: gives the old memory back, so that nobody may read there without asking first.
    """

    name: str
    do: Deed
    seen: frozenset[str] = IN_PLACE
    cause: str = "(?!)"
    says: Says = "drift"
    models: tuple[str, ...] = BASIC
    place: Place = "callback"
    before: Deed = lambda run: None
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = None
    note: str = ""
    latest: int = 0
    frees: bool = False


def quietly(write: Callable[[nn.Parameter], object]) -> Deed:
    """To the largest tensor, under no_grad."""

    @torch.no_grad()
    def done(run: Run) -> None:
        write(run.weight)

    return done


def past(write: Callable[[Tensor], object]) -> Deed:
    """To the largest tensor, with nobody told."""
    return lambda run: write(run.weight.detach())


def to_odd(write: Callable[[Tensor], object]) -> Deed:
    """To the small buffer that no forward uses."""
    return lambda run: write(run.odd)
