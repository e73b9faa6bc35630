"""Errors that end a step, in words, with the module whose forward raised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from types import FrameType

from torch import nn

ONE_VALUE = "Expected more than 1 value per channel"
"""What torch says when a norm in training mode gets one value for each channel."""
_PLACE = re.compile(r" in '([^']*)': ")


def told(stage: str, error: BaseException, names: Mapping[int, str]) -> str:
    """An error as :attr:`frostline.auditing.step.Step.raised` has it.

    Args:
        stage: which part of the step raised, in words.
        error: what it raised.
        names: full names of modules by id.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2))
        >>> import torch
        >>> try:
        ...     net(torch.zeros(1, 2))
        ... except ValueError as error:
        ...     words = told("the forward", error, {id(net[0]): "0"})
        >>> words[:44], place_in(words)
        ("the forward raised ValueError in '0': Expect", '0')
    """
    text = str(error).strip().partition("\n")[0]
    where = next(_names(_frames(error), names), None)
    place = "" if where is None else f" in {where!r}"
    return f"{stage} raised {type(error).__name__}{place}: {text}"


def place_in(raised: str) -> str | None:
    """The full name of the module that such words name, or None."""
    found = _PLACE.search(raised)
    return None if found is None else found.group(1)


def running(frame: FrameType | None) -> Iterator[object]:
    """The objects whose methods are running, innermost first."""
    while frame is not None:
        yield _owner(frame)
        frame = frame.f_back


def _frames(error: BaseException) -> list[FrameType]:
    """The frames that the error came through, innermost first."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames[::-1]


def _names(frames: Iterable[FrameType], names: Mapping[int, str]) -> Iterator[str]:
    for frame in frames:
        owner = _owner(frame)
        if isinstance(owner, nn.Module) and id(owner) in names:
            yield names[id(owner)]


def _owner(frame: FrameType) -> object:
    code = frame.f_code
    is_method = code.co_argcount > 0 and code.co_varnames[0] == "self"
    return frame.f_locals.get("self") if is_method else None
