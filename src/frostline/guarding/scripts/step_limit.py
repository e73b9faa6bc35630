"""``--steps N``: when is it enough, with several optimizers that take turns."""

from __future__ import annotations

import gc
from weakref import WeakKeyDictionary, WeakSet

from torch.optim import Optimizer


class StepLimit:
    """Counts the steps of every optimizer.

    Enough is when all that are alive have made their steps, so that both sides of a GAN and all
    optimizers of an optimizer-in-backward do; at the latest when one would make a step too many.

    Args:
        limit: how many steps of each; None for no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._others = WeakSet(_alive())
        self._made: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()

    def would_exceed(self, optimizer: Optimizer) -> bool:
        """Whether ``optimizer`` has made all of its steps already."""
        return self._limit is not None and self._made.get(optimizer, 0) >= self._limit

    def is_reached_by(self, optimizer: Optimizer) -> bool:
        """Count a step that ``optimizer`` has made; whether none is left to wait for."""
        if self._limit is None:
            return False
        self._made[optimizer] = self._made.get(optimizer, 0) + 1
        if self._made[optimizer] < self._limit:
            return False
        waiting = (other for other in _alive() if other not in self._others)
        return all(self._made.get(other, 0) >= self._limit for other in waiting)


def _alive() -> list[Optimizer]:
    # Wrappers of trainers are optimizers by class, but it is what they wrap that steps.
    return [
        thing
        for thing in gc.get_objects()
        if issubclass(type(thing), Optimizer) and getattr(type(thing).step, "hooked", False)
    ]
