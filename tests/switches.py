"""A mechanism that can be turned off, and the ways of turning off, for the tables of ablations.

A switch replaces an attribute of `frostline` from outside; the product knows of none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Ablation(NamedTuple):
    """A mechanism, and how the world is without it.

    Attributes:
        mechanism: its name in the table.
        turn_off: to be called in a process of its own.
        tests: every one of these must fail.
    """

    mechanism: str
    turn_off: Callable[[], None]
    tests: tuple[str, ...]


Switch = Callable[[], None]


def replace(owner: Any, name: str, by: Any) -> Switch:
    """Put something else at a name."""
    _demand(owner, name)
    return lambda: setattr(owner, name, by)


def remove(owner: type, name: str) -> Switch:
    """Let a class fall back on its base."""
    _demand(owner, name)
    return lambda: delattr(owner, name)


def skip(owner: Any, name: str, answer: Any = None) -> Switch:
    """Replace a function by one that only answers."""
    return replace(owner, name, lambda *args, **kwargs: answer)


def _demand(owner: Any, name: str) -> None:
    if name not in vars(owner):
        raise AttributeError(f"{owner.__name__} defines no {name}: the ablation would do nothing")
