"""Modules that a loss function uses beside the model: a teacher, a criterion with statistics."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch import nn


def modules_beside(model: nn.Module, compute_loss: Callable[..., Any]) -> list[nn.Module]:
    """Modules that ``compute_loss`` can reach by its own names and that are not in ``model``.

    Looked at are closures, globals that it names, bound arguments, and the object whose method it
    is; one level of lists, dicts and attributes.

    Example:
        >>> model, teacher = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> found = modules_beside(model, lambda m, x: (m(x) - teacher(x)).square().mean())
        >>> found == [teacher]
        True
    """
    inside = {id(module) for module in model.modules()}
    found = {id(m): m for value in _values(compute_loss) for m in _modules(value)}
    return [module for key, module in found.items() if key not in inside]


def _values(function: Any) -> Iterator[Any]:
    if isinstance(function, functools.partial):
        yield from (*function.args, *function.keywords.values())
        yield from _values(function.func)
    elif inspect.ismethod(function):
        yield function.__self__
        yield from _values(function.__func__)
    elif inspect.isfunction(function):
        yield from _named_in(function)
        yield from function.__defaults__ or ()
    else:
        yield function


def _named_in(function: Any) -> Iterator[Any]:
    try:
        names = inspect.getclosurevars(function)
    except ValueError:  # a name of its closure has no value yet
        return
    yield from (*names.nonlocals.values(), *names.globals.values())


def _modules(value: Any) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
        return
    inner: Iterable[Any] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list | tuple):
        inner = value
    elif not isinstance(value, type) and not inspect.ismodule(value):
        inner = getattr(value, "__dict__", {}).values()
    yield from (each for each in inner if isinstance(each, nn.Module))
