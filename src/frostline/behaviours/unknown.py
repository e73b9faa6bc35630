"""Classes that nobody registered: what their code asks and writes, read from the code itself."""

from __future__ import annotations

import dis
import linecache
import os
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from frostline.behaviours.doing import Doing, Write
from frostline.behaviours.own_code import running, written_by
from frostline.freezing.reads_training import hooks_read


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
    if cls.__module__.startswith("torch."):
        return []  # those of torch that write are registered
    own = {name for name, buffer in module._buffers.items() if buffer is not None}
    own |= {name for name, value in vars(module).items() if isinstance(value, Tensor)}
    return sorted(written_by(cls) & own)


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
