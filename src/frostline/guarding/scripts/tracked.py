"""A model that is followed while a script runs."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from weakref import WeakSet

from torch import nn
from torch.optim import Optimizer

from frostline._names import named_modules
from frostline.guarding.freeze_guard import FreezeGuard
from frostline.guarding.scripts.merging import Followed


@dataclass(eq=False)
class Root:
    """A model that is followed.

    Attributes:
        ref: the outermost module, which only the guard keeps in memory.
        found: what is known of it so far.
        guard: what watches it; None once it was let go.
        optimizers: those alive that hold a parameter of it.
        was_optimized: whether there ever was one.
    """

    ref: weakref.ref[nn.Module]
    found: Followed
    guard: FreezeGuard | None = None
    optimizers: WeakSet[Optimizer] = field(default_factory=WeakSet)
    was_optimized: bool = False

    @property
    def model(self) -> nn.Module | None:
        """The outermost module; None once it is gone."""
        return self.ref()

    def is_over(self) -> bool:
        """Whether it was trained, and all that trained it is gone."""
        return self.guard is not None and self.was_optimized and not self.optimizers


def holds(model: nn.Module, ids: set[int]) -> bool:
    """Whether any parameter of ``model`` is among these, by identity."""
    return any(id(p) in ids for p in model.parameters())


def place_in(inner: nn.Module | None, outer: nn.Module) -> str | None:
    """Where ``inner`` hangs in ``outer``, ``""`` if that only wraps it; None if it does not."""
    return next((name for name, module in named_modules(outer) if module is inner), None)
