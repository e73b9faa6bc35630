"""Progress on stderr: a bar where it is a terminal and the work takes long, else nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

PATIENCE = 2.0  # seconds without a word

Tick = Callable[[], None]


@contextmanager
def progress(total: int | None, text: str) -> Iterator[Tick]:
    """A function to call after each of ``total`` steps.

    Args:
        total: how many steps there will be; None if nobody knows.
        text: what is being done, in a few words.
    """
    if not sys.stderr.isatty():
        yield lambda: None
        return
    bar = _Bar(total, text)
    try:
        yield bar.tick
    finally:
        bar.stop()


class _Bar:
    """Appears after a while."""

    def __init__(self, total: int | None, text: str) -> None:
        self._total, self._text = total, text
        self._begun, self._steps = time.monotonic(), 0
        self._shown: Progress | None = None

    def tick(self) -> None:
        self._steps += 1
        if self._shown is None:
            if time.monotonic() - self._begun < PATIENCE:
                return
            self._show()
        if self._shown is not None:
            self._shown.update(self._shown.task_ids[0], completed=self._steps)

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._shown = Progress(
            BarColumn(24),
            TextColumn("{task.percentage:>3.0f} %  {task.description}", markup=False),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._shown.add_task(self._text, total=self._total)
        self._shown.start()

    def stop(self) -> None:
        if self._shown is not None:
            self._shown.stop()
