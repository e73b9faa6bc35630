"""What the user's code raises, told as theirs."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from frostline.cli.targets.spelling import typed
from frostline.errors import TargetError

_OURS = (os.path.dirname(__file__) + os.sep, "<frozen importlib", importlib.__file__)


@contextmanager
def their_code(target: str, doing: str) -> Iterator[None]:
    """Run what belongs to the user; what it raises becomes one error with their lines.

    Args:
        target: as it was typed.
        doing: what is going on, as ``"while build() ran"``.

    Raises:
        TargetError: an exception, with its traceback from their first line on, or ``sys.exit``.
    """
    try:
        yield
    except TargetError:  # ours, which says more than the exception behind it
        raise
    except SystemExit as error:
        raise TargetError(_exited(error, target, doing)) from error
    except Exception as error:
        trace = traceback.format_exception(type(error), error, _theirs(error.__traceback__))
        raise TargetError(
            f"{target}: your code raised {type(error).__name__} {doing}\n\n"
            f"{''.join(trace).rstrip()}"
        ) from error


def _exited(error: SystemExit, target: str, doing: str) -> str:
    code = "" if error.code is None else repr(error.code)
    frames = traceback.extract_tb(_theirs(error.__traceback__))
    line = f" (line {frames[0].lineno} of {os.path.basename(frames[0].filename)})" if frames else ""
    return (
        f"{target}: your code called sys.exit({code}) {doing}{line}, so there is no model. "
        "Arguments that it reads stand behind `--`, as in\n\n"
        f"{typed(target)} -- --data DIR"
    )


def _theirs(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is neither ours nor of the import system."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_OURS):
        trace = trace.tb_next
    return trace
