"""How an exact window is run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from frostline.accumulation.exact.blocks import checkpointed
from frostline.accumulation.exact.forwards import Forwards
from frostline.accumulation.exact.joined import joined
from frostline.accumulation.exact.recomputing import updated_once
from frostline.accumulation.exact.windowed.engine import windowed
from frostline.accumulation.exact.windowed.taping import taping
from frostline.lockstep.shelving import Shelf
from frostline.lockstep.storing import Store

Backward = Callable[[Tensor], Any]


class Engine(Protocol):
    """Runs the forwards of a window and their gradients."""

    def run(self, forwards: Forwards, backward: Backward) -> set[int] | None:
        """Gives the ids of the buffers that were written as in one forward; None: all."""


@dataclass(frozen=True)
class Joined:
    """One graph, in the memory of the big batch; with a store, what autograd saves lies there."""

    store: Store | None = None

    def run(self, forwards: Forwards, backward: Backward) -> set[int]:
        if self.store is None:
            return joined(forwards, backward)
        with taping(Shelf(self.store, forwards.resident())):
            return joined(forwards, backward)


@dataclass(frozen=True)
class Windowed:
    """One microbatch in memory at a time, the others on a store."""

    store: Store

    def run(self, forwards: Forwards, backward: Backward) -> set[int]:
        return windowed(forwards, backward, self.store)


@dataclass(frozen=True)
class BigBatch:
    """All microbatches as one batch, as torch runs it.

    Attributes:
        store: where what autograd saves is kept; None for memory.
        checkpointed: blocks of the model run again in backward, and keep nothing.
    """

    store: Store | None = None
    checkpointed: bool = False

    def run(self, forwards: Forwards, backward: Backward) -> None:
        with ExitStack() as stack:
            if self.store is not None:
                stack.enter_context(taping(Shelf(self.store, forwards.resident())))
            if self.checkpointed:
                stack.enter_context(checkpointed(forwards.model))
            stack.enter_context(updated_once(forwards.models))
            loss = forwards.whole()
            if loss.requires_grad:
                backward(loss)
