"""Whether a loss function is one that was looked at before, though it is defined anew each step."""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import Any

from torch import Tensor, nn

Key = tuple[object, ...]

# A loss that never looks the same (it closes over a step counter) is not looked at for ever.
_MOST = 16

_seen: weakref.WeakKeyDictionary[nn.Module, dict[str, set[Key]]] = weakref.WeakKeyDictionary()


def first_time(model: nn.Module, compute_loss: Any, what: str) -> bool:
    """Whether this loss was not looked at with this model, for ``what``; it is from now on."""
    known = _seen.setdefault(model, {}).setdefault(what, set())
    key = _key(compute_loss)
    if key in known or len(known) >= _MOST:
        return False
    known.add(key)
    return True


def forget(model: nn.Module, compute_loss: Any, what: str) -> None:
    """Look at it again the next time."""
    _seen[model][what].discard(_key(compute_loss))


def _key(function: Any) -> Key:
    """What it is made of: its code, and what it closes over by value, or else by identity."""
    if isinstance(function, functools.partial):
        given = (*function.args, *function.keywords.values())
        return _key(function.func), *map(_value, given)
    if inspect.ismethod(function):
        return *_key(function.__func__), *_value_of_object(function.__self__)
    if inspect.isfunction(function):
        cells = (cell.cell_contents for cell in function.__closure__ or () if _is_set(cell))
        return function.__code__, *map(_value, (*cells, *(function.__defaults__ or ())))
    return _value_of_object(function)


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _value(value: Any) -> object:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, Tensor | list | dict | set):
        return type(value)
    if inspect.isfunction(value) or isinstance(value, functools.partial):
        return getattr(value, "__code__", type(value))
    return type(value), id(value)


def _value_of_object(value: Any) -> Key:
    return type(value), *map(_value, getattr(value, "__dict__", {}).values())
