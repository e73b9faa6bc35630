"""The parts that are alive in this process, and when they look after themselves.

A loader may put new, trainable parameters where frozen ones were (``from_pretrained`` does), and a
module may be replaced. Both are seen when a mode is next written, at the latest at the next
optimizer step and before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol
from weakref import WeakSet

from torch import nn

from frostline.errors import FrozenStateChanged


class LivePart(Protocol):
    """What the registry needs of a FrozenPart."""

    @property
    def id(self) -> str:
        """What the records of modules call the part."""

    @property
    def sentinel(self) -> nn.Module | None:
        """The module whose mode is written whenever somebody writes the modes of the part."""

    def look_after(self, about_to_train: bool) -> None:
        """Freeze again what a loader made trainable; raise if a module was replaced."""

    def root_or_none(self) -> nn.Module | None:
        """The model, unless it is gone."""

    def forget(self, tensors: set[str], modules: set[str], free: set[str]) -> bool:
        """Leave these names out from now on; whether the part covered any of them."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of it."""

    def flags_before(self) -> list[tuple[nn.Parameter, bool]]:
        """The parameters that the part covers now, with their flags before."""

    def modules_then(self) -> list[nn.Module]:
        """The modules that the part covered when it was bound, wherever they hang now."""

    def frozen_parameters(self) -> list[nn.Parameter]:
        """The parameters that the part covers now."""


_live: WeakSet[LivePart] = WeakSet()


def add(part: LivePart) -> None:
    """Count ``part`` among the living."""
    _live.add(part)


def discard(part: LivePart) -> None:
    """Forget ``part``."""
    _live.discard(part)


def all_parts() -> list[LivePart]:
    """The living parts."""
    return list(_live)


Shrinking = Callable[[LivePart], None]

_told: list[Shrinking] = []


def on_shrink(callback: Shrinking) -> Callable[[], None]:
    """Call ``callback`` before a part lets go of anything; the answer takes it back."""
    _told.append(callback)
    return lambda: _told.remove(callback)


def about_to_shrink(parts: Iterable[LivePart]) -> None:
    """These parts are about to let go: whoever watches them looks a last time."""
    for part in list(parts):
        for callback in list(_told):
            callback(part)


def mode_was_written(module: nn.Module, mode: bool) -> None:
    """Somebody wrote ``training`` of a held module."""
    for part in all_parts():
        if part.sentinel is module:
            _look_after(part, module, mode)


def _look_after(part: LivePart, module: nn.Module, mode: bool) -> None:
    try:
        part.look_after(about_to_train=mode)
    except FrozenStateChanged:
        # Moved into another model it is held there, and what it left behind is not trained now.
        root = part.root_or_none()
        if root is None or any(module is here for here in root.modules()):
            raise
