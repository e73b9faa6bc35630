"""Classes that nobody registered: what their code asks and writes, read from the code itself."""

from __future__ import annotations

import dis
import linecache
import os
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from frostline.behaviours.doing import Doing, Write
from frostline.behaviours.own_code import running, written_by
from frostline.freezing import holders
from frostline.freezing.machinery import Held
from frostline.freezing.reads_training import hooks_read
from frostline.freezing.record import WATCH, get, is_held


def by_code(module: nn.Module) -> tuple[Doing, Doing] | None:
    """What it may do in training and in eval mode; None if it neither asks for the mode nor writes.

    What the code writes only in training and what it writes always is not told apart: a class that
    asks for the mode is taken to write in training only.
    """
    cls = type(module)
    asks = question(cls) or ("a forward hook" if hooks_read(module) else None)
    writes = tuple(Write(name, "[by its own code]") for name in _written(module))
    if asks is None and not writes:
        return None
    calm = Doing("does as its code says for eval mode")
    if asks is None:
        always = Doing("writes to itself in every mode", writes=writes)
        return always, always
    return Doing("its code asks for the mode", asks, writes=writes), calm


def _written(module: nn.Module) -> list[str]:
    cls = type(module)
    # Those of torch that write are registered; another's forward runs in place of its own.
    if cls.__module__.startswith("torch.") or _is_replaced(module):
        return []
    own = {name for name, value in vars(module).items() if isinstance(value, Tensor)}
    own |= {name for name, buffer in module._buffers.items() if buffer is not None}
    if _was_compared(module):
        own.clear()
    own |= {n for n, p in module._parameters.items() if p is not None and not p.requires_grad}
    return sorted(written_by(cls) & own)


def _was_compared(module: nn.Module) -> bool:
    """Whether a frozen part saw that its first forward wrote nothing, in the mode it stays in."""
    watched = isinstance(module, Held) and get(module) is not None
    stays = is_held(module) or question(type(module)) is None
    return watched and stays and WATCH not in vars(module)


def _is_replaced(module: nn.Module) -> bool:
    """Whether it is held by a forward that its user registered."""
    return is_held(module) and holders.registered(type(module)) is not None


# Weak: some libraries make a class for each instance.
_answers: WeakKeyDictionary[type, str | None] = WeakKeyDictionary()


def question(cls: type[nn.Module]) -> str | None:
    """Where the code that a forward reaches reads the attribute ``training``, or None."""
    if cls not in _answers:
        _answers[cls] = _first_question(cls)
    return _answers[cls]


def _first_question(cls: type[nn.Module]) -> str | None:
    for code in running(cls):
        line = code.co_firstlineno
        for instruction in dis.get_instructions(code):
            line = instruction.starts_line or line
            if instruction.argval != "training" or not instruction.opname.startswith("LOAD"):
                continue
            # Recomputing instead of keeping changes the memory that is used, not what comes out.
            if "gradient_checkpointing" not in linecache.getline(code.co_filename, line):
                return _shown(code.co_filename, line)
    return None


def _shown(file: str, line: int) -> str:
    text = linecache.getline(file, line).strip()
    place = f"{os.path.basename(file)}:{line}"
    return f"{place}: {text}" if text else place
