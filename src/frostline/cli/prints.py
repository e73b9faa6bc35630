"""Where the prints of other people's code go."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def prints_to_stderr(wanted: bool = True) -> Iterator[None]:
    """While this is open, what the code and its children print on stdout goes to stderr.

    Args:
        wanted: False lets everything through; a command hands in its ``--json``.
    """
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 1)
        os.close(kept)
