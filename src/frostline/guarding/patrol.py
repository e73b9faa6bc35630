"""Content patrol: every byte read once in N steps, a little at each, N said beforehand.

No write can hide from it, whoever made it and whatever the device; it only comes up to N steps
later. N follows from a time budget: the number of bytes a step is fixed by how fast reading is and
how long the steps are, and stays fixed until steps become much longer or shorter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from frostline.guarding.reference import Blocks, DeviceBlocks, Reference, steps_to_read

LEAST_SECONDS = 50e-6
"""What the patrol may take in every step, however short the step is."""

_CHUNK = 1 << 20  # bytes between two looks at the clock
_REVISED = 2.0  # how much longer or shorter steps have to become for another quota


class Patrol:
    """Walks over references in a circle."""

    def __init__(self, references: Sequence[Reference], overhead: float) -> None:
        self._overhead = overhead
        self._units = [(ref, piece) for ref in references for piece in ref.pieces if piece.nbytes]
        self.nbytes = sum(piece.nbytes for _, piece in self._units)
        self._unit = self._block = 0
        self._read = self._seconds = 0.0
        self._quota: float | None = None
        self._quota_for = 0.0
        self._pending: list[tuple[Reference, Tensor, Tensor | None]] = []
        self.cycles = 0
        self._steps_of_cycle = 0
        self.longest_cycle = 0
        self._is_whole = False

    def go_on_from(self, other: Patrol) -> None:
        """Take over the pace of ``other``, and its place where it was reading the same tensor.

        Tensors that move would otherwise keep a patrol at the beginning of its circle for ever.
        """
        self._read, self._seconds = other._read, other._seconds
        self._quota_for, self.longest_cycle = other._quota_for, other.longest_cycle
        if other._quota is not None:
            self._quota = min(float(self.nbytes), other._quota)
        place = other._units[other._unit][1] if other._units else None
        for number, (_, piece) in enumerate(self._units):
            if piece is place:
                self._unit, self._block = number, other._block
                self._steps_of_cycle = other._steps_of_cycle

    @property
    def announced(self) -> int | None:
        """Steps within which every byte is read; None as long as nothing was measured."""
        if not self.nbytes:
            return 0
        if self._quota is None or self._quota <= 0:
            return None
        # A change may come just behind the reader, so a whole circle has to pass. At least one
        # block is read in a step, which for small quotas is more: what was counted is nearer.
        bound = steps_to_read(self.nbytes, self._quota)
        return min(bound, self.longest_cycle + 1) if self.longest_cycle else bound

    def run(self, step_seconds: float | None) -> list[Reference]:
        """Read this step's share; what differs.

        Args:
            step_seconds: how long a step takes, None if that is not known yet.
        """
        if not self.nbytes or self._overhead <= 0:
            return []
        self._steps_of_cycle += 1
        found = self._poll()
        if step_seconds is not None:
            self._revise(step_seconds)
        started = time.perf_counter()
        before = self._read
        while self._goes_on(self._read - before, time.perf_counter() - started):
            found += self._read_some(self._left(self._read - before))
            if self._read - before >= self.nbytes:
                break
        self._seconds += time.perf_counter() - started
        return found

    def _goes_on(self, read: float, seconds: float) -> bool:
        if self._quota is None:
            # Something is read whatever the clock says: a process that was put aside between two
            # looks at it would take the speed of reading for 0, and never read again.
            return not read or seconds < LEAST_SECONDS
        return read < self._quota

    def _left(self, read: float) -> int:
        return _CHUNK if self._quota is None else max(1, int(self._quota - read))

    def _revise(self, step_seconds: float) -> None:
        within = self._quota_for / _REVISED <= step_seconds <= self._quota_for * _REVISED
        if (self._quota is not None and within) or not self._seconds:
            return
        speed = self._read / self._seconds
        self._quota = min(
            float(self.nbytes), speed * max(LEAST_SECONDS, self._overhead * step_seconds)
        )
        self._quota_for = step_seconds
        self.longest_cycle, self._is_whole = 0, False  # counted with another quota

    def _read_some(self, limit: int) -> list[Reference]:
        """Read on from where the last call stopped, within one piece."""
        reference, piece = self._units[self._unit]
        size = max(1, piece.bytes_of(0, 1))
        last = min(piece.count, self._block + max(1, min(limit, _CHUNK) // size))
        found = self._look(reference, piece, self._block, last)
        self._read += piece.bytes_of(self._block, last)
        self._block = last
        if last == piece.count:
            self._next_unit()
        return found

    def _next_unit(self) -> None:
        self._block = 0
        self._unit = (self._unit + 1) % len(self._units)
        if self._unit == 0:
            self.cycles += 1
            if self._is_whole:
                self.longest_cycle = max(self.longest_cycle, self._steps_of_cycle)
            self._steps_of_cycle, self._is_whole = 0, self._quota is not None

    def _look(self, ref: Reference, piece: Blocks, first: int, last: int) -> list[Reference]:
        if not isinstance(piece, DeviceBlocks):
            return [ref] if piece.changed(first, last) else []
        # The verdict is fetched one step later, when the device has long come to it.
        self._pending.append((ref, *_fetch(piece.differ(first, last).any())))
        return []

    def _poll(self) -> list[Reference]:
        pending, self._pending = self._pending, []
        found = []
        for ref, verdict, event in pending:
            if event is not None:
                event.synchronize()  # type: ignore[attr-defined]
            if bool(verdict):
                found.append(ref)
        return found

    def rest(self) -> list[Reference]:
        """Verdicts that are still on their way."""
        return self._poll()


def _fetch(verdict: Tensor) -> tuple[Tensor, Tensor | None]:
    """A copy on the host that arrives by itself, and what tells that it has."""
    if verdict.device.type != "cuda":
        return verdict, None
    host = torch.empty((), dtype=torch.bool, pin_memory=True)
    host.copy_(verdict, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event  # type: ignore[return-value]
