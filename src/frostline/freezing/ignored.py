"""Calls that the hold ignores are counted, with the line of the first caller."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from types import FrameType

from torch import nn

from frostline.freezing.record import IGNORED

# Directories whose frames are not the user's: torch's own `train()` recursion, and ours.
_TORCH = os.path.dirname(os.path.dirname(os.path.abspath(nn.__file__))) + os.sep
_NOT_THE_USER = (
    _TORCH,
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
)


@dataclass(frozen=True)
class IgnoredCall:
    """A kind of call that the hold ignored.

    Attributes:
        what: the call, for example ``train()``.
        count: how often one module ignored it, the largest over the part.
        modules: how many modules ignored it.
        caller: ``file:line`` of the first.
    """

    what: str
    count: int
    modules: int
    caller: str


def note(module: nn.Module, what: str) -> bool:
    """Count a call that ``module`` ignored; whether it was the first of its kind there."""
    calls = vars(module).setdefault(IGNORED, {})
    if what in calls:
        calls[what][0] += 1
        return False
    calls[what] = [1, caller()]
    return True


def caller() -> str:
    """``file:line`` of the innermost frame that belongs neither to torch nor to frostline."""
    frame = _user_frame()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _user_frame() -> FrameType:
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_NOT_THE_USER):
        frame = frame.f_back
    return frame


def called_from(function: str) -> bool:
    """Whether a function of this name of torch is among the callers."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == function and frame.f_code.co_filename.startswith(_TORCH):
            return True
        frame = frame.f_back  # type: ignore[assignment]
    return False


def warn(message: str, category: type[Warning]) -> None:
    """Warn at the user's line, once for each such line."""
    frame = _user_frame()
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno)


def collect(modules: list[nn.Module]) -> list[IgnoredCall]:
    """What these modules ignored, most frequent first."""
    found: dict[str, list[tuple[int, str]]] = {}
    for module in modules:
        for what, (count, where) in vars(module).get(IGNORED, {}).items():
            found.setdefault(what, []).append((count, where))
    calls = [
        IgnoredCall(what, max(n for n, _ in seen), len(seen), seen[0][1])
        for what, seen in found.items()
    ]
    return sorted(calls, key=lambda call: -call.count)
