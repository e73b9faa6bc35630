"""Does the code of a module read ``training``? Only such modules need a held class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


def hooks_read(module: nn.Module) -> bool:
    """Whether a forward hook on ``module``, or a forward of its own, looks at ``training``.

    The old ``spectral_norm`` asks its module there.
    """
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    if "forward" in module.__dict__:
        hooks.append(module.__dict__["forward"])
    return any(_callable_reads(hook) for hook in hooks)


# Weak: some libraries make a class for each instance, and a cache must not keep those alive.
_answers: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def class_reads(cls: type) -> bool:
    """Whether the code of ``cls`` below ``nn.Module`` looks at ``training``, by its bytecode.

    That is: any name or string constant ``training`` in one of its methods.
    """
    answer = _answers.get(cls)
    if answer is None:
        _answers[cls] = False  # a callable object that refers to its own class ends the walk here
        mro = [c for c in cls.__mro__ if c is not nn.Module and c is not object]
        answer = _answers[cls] = any(_body_reads(c) for c in mro)
    return answer


def _body_reads(cls: type) -> bool:
    # `__setstate__`, `__repr__` and the like run outside of forward, but telling them apart would
    # be a guess; the price of a false yes is one swapped class.
    if cls.__module__.startswith("frostline.freezing"):
        return False
    return any(_callable_reads(member) for member in vars(cls).values())


def _callable_reads(member: Any) -> bool:
    member = getattr(member, "__func__", member)
    if isinstance(member, partial):
        return _callable_reads(member.func)
    if isinstance(member, property):
        return any(_callable_reads(f) for f in (member.fget, member.fset) if f is not None)
    code = getattr(member, "__code__", None)
    if isinstance(code, CodeType):
        return _mentions(code) or _wraps_a_reader(member)
    return _is_callable_object(member) and class_reads(type(member))


def _wraps_a_reader(function: Callable[..., Any]) -> bool:
    inner = getattr(function, "__wrapped__", None)
    return inner is not None and _callable_reads(inner)


def _is_callable_object(member: Any) -> bool:
    return callable(member) and not isinstance(member, type)


def _mentions(code: CodeType) -> bool:
    return any("training" in c.co_names or "training" in c.co_consts for c in _nested(code))


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)
