"""Pace: how long steps take, without what the guard takes of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

_REMEMBERED = 16


class Pace:
    """Wall time between the ends of steps."""

    def __init__(self) -> None:
        self._durations: list[float] = []
        self._last_end: float | None = None
        self._spent = 0.0

    @contextmanager
    def not_counted(self) -> Iterator[None]:
        """What runs inside is the guard's own time."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spent += time.perf_counter() - started

    def step_ended(self) -> None:
        """A step has just ended, and the next begins."""
        now = time.perf_counter()
        if self._last_end is not None:
            took = now - self._last_end - self._spent
            self._durations = [*self._durations[1 - _REMEMBERED :], took]
        self._last_end, self._spent = now, 0.0

    @property
    def step_seconds(self) -> float | None:
        """What a step takes; None before the second one."""
        # A median: one step that evaluated or saved must not change what the patrol may take.
        return sorted(self._durations)[len(self._durations) // 2] if self._durations else None
