"""What the code of a module does when it runs: which of its own tensors it writes, what it asks.

Read from bytecode, of what a forward can reach: ``forward`` and ``__call__``, and the methods of
the class whose names stand in the code of those.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

_LOADS = ("LOAD_ATTR", "LOAD_METHOD")
_answers: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def written_by(cls: type[nn.Module]) -> frozenset[str]:
    """Attributes that the methods of ``cls`` assign, or call an in-place method on.

    Only what a forward reaches counts; methods of ``nn.Module`` itself do not.

    Example:
        >>> class Queue(nn.Module):
        ...     def forward(self, x):
        ...         self.rows.mul_(0.9)
        ...         self.calls += 1
        ...         return x
        >>> sorted(written_by(Queue))
        ['calls', 'rows']
    """
    answer = _answers.get(cls)
    if answer is None:
        answer = _answers[cls] = frozenset(n for code in running(cls) for n in _writes(code))
    return answer


def running(cls: type[nn.Module]) -> list[CodeType]:
    """The code that a forward of ``cls`` can reach, its decorators and inner functions included."""
    methods = {
        name: member
        for base in reversed(cls.__mro__)
        if base not in (nn.Module, object)
        for name, member in vars(base).items()
        if not isinstance(member, type)
    }
    found: dict[str, list[CodeType]] = {}
    waiting: list[str] = [name for name in ("forward", "__call__") if name in methods]
    while waiting:
        name = waiting.pop()
        found[name] = [inner for code in _codes(methods[name]) for inner in _nested(code)]
        mentioned = {word for code in found[name] for word in code.co_names}
        waiting += [word for word in mentioned if word in methods and word not in found]
        # A method that is extended calls the one of its base.
        if any("super" in code.co_names for code in found[name]):
            found[name] += _of_bases(cls, name)
    return [code for codes in found.values() for code in codes]


def _of_bases(cls: type[nn.Module], name: str) -> list[CodeType]:
    return [
        inner
        for base in cls.__mro__[1:]
        if base not in (nn.Module, object) and name in vars(base)
        for code in _codes(vars(base)[name])
        for inner in _nested(code)
    ]


def _codes(member: Any) -> Iterator[CodeType]:
    """The code of a method, of what it wraps, and of a property's getter."""
    if isinstance(member, property):
        member = member.fget
    function: Callable[..., Any] | None = getattr(member, "__func__", member)
    while isinstance(function, FunctionType):
        yield function.__code__
        function = getattr(function, "__wrapped__", None)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _nested(constant)


def _writes(code: CodeType) -> Iterator[str]:
    """Stored attributes, ``self.x.anything_()``, and ``self.x[...] = ...``."""
    chain: list[str] = []
    loaded: dict[tuple[int | None, int | None], str] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname in _LOADS:
            chain.append(str(instruction.argval))
            # Where `self.x` begins in the source; a store into `self.x[...]` begins there too.
            loaded.setdefault(_begin(instruction), chain[0])
            if _is_in_place(chain[-1]):
                yield from chain[:1] if len(chain) > 1 else ()
            continue
        if instruction.opname == "STORE_ATTR":
            yield str(instruction.argval)
        if instruction.opname == "STORE_SUBSCR" and _begin(instruction) in loaded:
            yield loaded[_begin(instruction)]
        chain = []


def _begin(instruction: dis.Instruction) -> tuple[int | None, int | None]:
    position = instruction.positions
    return (None, None) if position is None else (position.lineno, position.col_offset)


def _is_in_place(method: str) -> bool:
    return method.endswith("_") and not method.startswith("_")
