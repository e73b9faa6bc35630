"""Why a step, or one of its writes, cannot be predicted."""

from __future__ import annotations

from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)


class NotPredictable(Exception):
    """The step cannot be run without values; the message says why, in one line.

    Not an error of the user's: the audit falls back to what can be read off the modules.
    """


def in_words(error: Exception) -> str:
    """The reason that an error of a run without values gives."""
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        return f"its code depends on values ({error.func})"
    if isinstance(error, UnsupportedOperatorException):
        return f"{error.func} cannot be computed without memory"
    text = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
