"""The witness: one record of page writes for the whole process, which several guards share.

The kernel lets one userfaultfd watch an address, and asking takes the news away. So there is one
tracker, and what a scan finds is delivered to every record that holds the page. Memory is watched
where it lies: nothing is moved, so aliases, numpy views and shared storages stay alive.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Sequence
from contextlib import suppress

from frostline.errors import PagesUnavailable
from frostline.guarding.pages import kernel
from frostline.guarding.pages.ranges import Range, common, joined, without

PAGE = mmap.PAGESIZE
"""Bytes of a page."""

COLLAPSE = 32 << 20
"""Bytes from which a range is asked to be made of huge pages."""

_GAP = 1 << 20
"""Ranges this near to each other are scanned in one call.

A call costs 2 microseconds, memory between that is not watched nearly nothing. A span is not longer
than that because the kernel tells drivers (of GPUs) about the span of a scan.
"""


def interior(start: int, end: int) -> Range:
    """The whole pages inside [start, end); start and end are equal if there is none."""
    low, high = -(-start // PAGE) * PAGE, end // PAGE * PAGE
    return low, max(low, high)


class PageRecord:
    """A record of which pages were written.

    From 32 MiB on a range is made of huge pages first, where the kernel is willing: 0.65 to 2 s
    for 1 GB, once, and every later look takes 0.03 ms of it instead of 0.25. Untouched memory
    becomes real by it.

    In a forked child a record is closed; the parent's goes on, and is not touched by the child.
    All methods may be called from any thread.

    Args:
        ranges: address ranges of whole pages, as :func:`interior` gives them. The memory should
            be this process's own: writes by other processes are not seen.
        huge: whether to make large ranges of huge pages.

    Raises:
        PagesUnavailable: nothing is watched then.
        ValueError: a range does not consist of whole pages.

    Example:
        >>> import torch
        >>> weight = torch.zeros(100_000)
        >>> start = weight.data_ptr()
        >>> record = PageRecord([interior(start, start + weight.nbytes)])
        >>> weight.data[50_000] = 1
        >>> [(end - start) // PAGE for start, end in record.written()]
        [1]
        >>> record.close()
    """

    def __init__(self, ranges: Sequence[Range], *, huge: bool = False) -> None:
        for start, end in ranges:
            if start % PAGE or end % PAGE:
                raise ValueError(
                    f"range {start:#x}-{end:#x}: expected whole pages of {PAGE} bytes. "
                    "Use interior(start, end)."
                )
        self.ranges = joined(ranges)
        self.spans = joined(ranges, _GAP)
        self.pending: list[Range] = []
        self.lost: list[Range] = []
        self.huge = huge
        self.closed = False
        with _witness.lock:
            _witness.add(self)

    def written(self) -> list[Range]:
        """The pages written since the last call, or since the record began.

        Nothing is said of pages whose tracking was lost: :meth:`verify` tells.
        """
        with _witness.lock:
            if self.closed:
                return []
            _witness.scan(self.spans)
            pending, self.pending = self.pending, []
            return pending

    def verify(self) -> list[Range]:
        """The ranges that were not tracked all the time: unmapped, moved, or let go by others.

        An empty list says that the record is unbroken. Looks at every page: milliseconds for 1 GB.
        """
        with _witness.lock:
            if not self.closed:
                _witness.look_for_losses(self, self.ranges)
            return list(self.lost)

    def close(self) -> None:
        """Watch no more; pages that another record holds are watched on."""
        with _witness.lock:
            if not self.closed:
                self.closed = True
                _witness.remove(self)


class _Witness:
    """The tracker and the open records. Whoever calls it holds the lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.tracker: kernel.WriteTracker | None = None
        self.records: list[PageRecord] = []

    def add(self, record: PageRecord) -> None:
        if why := kernel.why_unavailable():
            raise PagesUnavailable(f"page writes cannot be tracked: {why}")
        try:
            self._begin(record)
        except OSError as error:
            self._release(record.ranges)
            raise PagesUnavailable(
                f"page writes cannot be tracked: {error.filename} failed: {error.strerror}. "
                "Another userfaultfd may watch the memory, or it is of a kind that cannot be "
                "watched"
            ) from error
        except BaseException:
            self._release(record.ranges)
            raise
        self.records.append(record)

    def _begin(self, record: PageRecord) -> None:
        held = self._held()
        if common(record.ranges, held):
            # Watching again would hide that a range was lost meanwhile.
            for other in self.records:
                self.look_for_losses(other, common(other.ranges, record.ranges))
        for start, end in without(record.ranges, held):
            if (
                record.huge and end - start >= COLLAPSE
            ):  # before watching: the kernel leaves marked pages alone
                kernel.collapse(start, end - start)
        tracker = self._tracker()
        for start, end in record.ranges:
            tracker.watch(start, end - start)
        for start, end in record.spans:  # arms what is new; what others hold is told to them
            self._deliver(tracker.written(start, end))

    def remove(self, record: PageRecord) -> None:
        self.records.remove(record)
        self._release(record.ranges)

    def scan(self, spans: Sequence[Range]) -> None:
        tracker = self._tracker()
        try:
            for start, end in spans:
                if found := tracker.written(start, end):
                    self._deliver(found)
        except OSError:
            self._all_lost()

    def look_for_losses(self, record: PageRecord, ranges: Sequence[Range]) -> None:
        tracker = self._tracker()
        try:
            for start, end in ranges:
                missing = without([(start, end)], tracker.tracked(start, end))
                record.lost = joined(record.lost + missing)
        except OSError:
            self._all_lost()

    def _tracker(self) -> kernel.WriteTracker:
        if self.tracker is None:
            self.tracker = kernel.WriteTracker()
        return self.tracker

    def _held(self) -> list[Range]:
        return joined(held for record in self.records for held in record.ranges)

    def _deliver(self, found: Sequence[Range]) -> None:
        regions = joined(found)
        for record in self.records:
            if news := common(regions, record.ranges):
                record.pending = joined(record.pending + news)

    def _all_lost(self) -> None:
        """The kernel does not answer any more, as when somebody closed our file descriptors."""
        for record in self.records:
            record.pending = record.lost = list(record.ranges)

    def _release(self, ranges: list[Range]) -> None:
        if self.tracker is None:
            return
        for start, end in without(ranges, self._held()):
            _unwatch(self.tracker, start, end)
        if not self.records:
            tracker, self.tracker = self.tracker, None
            with suppress(OSError):
                tracker.close()

    def forget_all(self) -> None:
        """In a forked child: the tracker and its news belong to the parent."""
        for record in self.records:
            record.closed = True
        self.records.clear()
        self._release([])
        self.lock.release()


def _unwatch(tracker: kernel.WriteTracker, start: int, end: int) -> None:
    """Also where a part of the memory is gone, or other memory is in its place."""
    try:
        tracker.unwatch(start, end - start)
    except OSError:
        with suppress(OSError):
            for low, high in tracker.tracked(start, end):
                tracker.unwatch(low, high - low)


_witness = _Witness()

if hasattr(os, "register_at_fork"):
    # No thread may be in the middle of a scan when the child is made.
    os.register_at_fork(
        before=_witness.lock.acquire,
        after_in_parent=_witness.lock.release,
        after_in_child=_witness.forget_all,
    )
