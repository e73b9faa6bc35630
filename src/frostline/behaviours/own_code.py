"""Which of its own tensors does the code of a module write to? Read from its bytecode."""

from __future__ import annotations

import dis
from collections.abc import Iterator
from types import CodeType, FunctionType
from weakref import WeakKeyDictionary

from torch import nn

# Setting up, loading and copying is not running.
_NOT_RUNNING = ("__init__", "reset", "init", "_init", "_load", "__setstate__", "__deepcopy__")
_LOADS = ("LOAD_ATTR", "LOAD_METHOD")
_answers: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def written_by(cls: type[nn.Module]) -> frozenset[str]:
    """Attributes that the methods of ``cls`` assign, or call an in-place method on.

    Only methods that run in a forward count; those of ``nn.Module`` itself do not.

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
        answer = _answers[cls] = frozenset(n for code in _methods(cls) for n in _writes(code))
    return answer


def _methods(cls: type) -> Iterator[CodeType]:
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for name, member in vars(base).items():
            function = getattr(member, "__wrapped__", member)
            if isinstance(function, FunctionType) and not name.startswith(_NOT_RUNNING):
                yield function.__code__


def _writes(code: CodeType) -> Iterator[str]:
    """Stored attributes, ``self.x.anything_()``, and ``self.x[...] = ...``."""
    chain: list[str] = []
    line: set[str] = set()
    for instruction in dis.get_instructions(code):
        if instruction.starts_line:
            line = set()
        if instruction.opname in _LOADS:
            chain.append(str(instruction.argval))
            line.add(chain[0])
            if _is_in_place(chain[-1]):
                yield from chain[:1] if len(chain) > 1 else ()
            continue
        if instruction.opname == "STORE_ATTR":
            yield str(instruction.argval)
        if instruction.opname == "STORE_SUBSCR":
            yield from line
        chain = []


def _is_in_place(method: str) -> bool:
    return method.endswith("_") and not method.startswith("_")
