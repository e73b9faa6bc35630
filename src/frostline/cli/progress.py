"""Progress on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

Tick = Callable[[str], None]
Hide = Callable[[], None]


@contextmanager
def progress(total: int) -> Iterator[tuple[Tick, Hide]]:
    """A function to call before each of ``total`` steps, and one that takes the bar away.

    The bar appears with the first step, so that text may be printed before.
    """
    if sys.stderr.isatty():
        yield from _bar(total)
    else:
        yield _lines(total), lambda: None


def _bar(total: int) -> Iterator[tuple[Tick, Hide]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(
        BarColumn(24),
        TextColumn("{task.completed}/{task.total}  {task.description}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("", total=total)
    begun = iter(range(total))

    def tick(step: str) -> None:
        bar.start()
        bar.update(task, description=step, completed=next(begun, total))

    try:
        yield tick, bar.stop
    finally:
        bar.stop()


def _lines(total: int) -> Tick:
    begun = iter(range(1, total + 1))

    def tick(step: str) -> None:
        click.echo(f"[{next(begun, total)}/{total}] {step}", err=True)

    return tick
