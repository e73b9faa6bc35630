"""What Linux offers a process that wants to know which of its own pages were written.

`userfaultfd` in its asynchronous mode puts a mark on pages, and a write takes the mark off, inside
the kernel: nothing stops, no handler runs, no privileges are needed. The ioctl `PAGEMAP_SCAN` lists
the pages without a mark and puts it back, in one call, so that no write falls between. It does not
matter who writes: Python, numpy, a kernel of torch, or `read(2)`.

What it cannot see: writes through another mapping of the same memory (other processes, a file that
is edited on disk), and by devices that were given the memory before it was marked.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import mmap
import os
import platform
import sys
from typing import Any

REGIONS = 512
"""Answers that one call of the kernel may give; longer lists are asked for piece by piece."""

_USERFAULTFD = {"x86_64": 323, "aarch64": 282}  # numbers of the system call
_USER_MODE_ONLY = 1  # needs no privileges; marks that are taken off in the kernel need no more
_UFFD_API, _ASYNC, _UNPOPULATED = 0xAA, 1 << 15, 1 << 13
_MODE_WP = 2
_API, _REGISTER, _UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
_SCAN = 0xC0606610
_REARM = 1  # PM_SCAN_WP_MATCHING: mark what is reported; pages that nobody watches are skipped
_WPALLOWED, _WRITTEN = 1, 2
_MADV_COLLAPSE = 25

_TOO_OLD = "the kernel is older than 6.7"
_REASONS = {
    ("userfaultfd", errno.EPERM): (
        "userfaultfd is refused here (seccomp, as in Docker's default profile)"
    ),
    ("userfaultfd", errno.ENOSYS): "the kernel has no userfaultfd, or hides it",
    ("UFFDIO_API", errno.EINVAL): f"{_TOO_OLD}: no asynchronous marks",
    ("PAGEMAP_SCAN", errno.ENOTTY): f"{_TOO_OLD}: no PAGEMAP_SCAN",
}


class _Region(ctypes.Structure):
    """``struct page_region``."""

    _fields_ = (("start", ctypes.c_uint64), ("end", ctypes.c_uint64), ("is", ctypes.c_uint64))


class _Question(ctypes.Structure):
    """``struct pm_scan_arg``."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            *("size", "flags", "start", "end", "walk_end", "vec", "vec_len", "max_pages"),
            *("category_inverted", "category_mask", "category_anyof_mask", "return_mask"),
        )
    )


class WriteTracker:
    """A record, kept by the kernel, of the pages of this process that were written.

    A range of addresses can be watched by one tracker of the process only. Closing the tracker, or
    the end of the process, ends all watching. It is worthless in a forked child, whose memory is
    its own: the child should only close it.

    Raises:
        OSError: the kernel refuses; `filename` says at which step. See :func:`why_unavailable`.
    """

    def __init__(self) -> None:
        self._uffd = _open_userfaultfd()
        try:
            self._pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._uffd)
            raise
        self._regions = (_Region * REGIONS)()
        self._question = _Question(
            size=ctypes.sizeof(_Question), vec=ctypes.addressof(self._regions), vec_len=REGIONS
        )

    def watch(self, start: int, length: int) -> None:
        """Watch whole pages; they count as written until :meth:`written` is first asked.

        Pages that are watched already stay as they are.

        Raises:
            OSError: EBUSY if something else in the process watches them by userfaultfd; EINVAL or
                ENOMEM if it is not memory that can be watched.
        """
        self._change("UFFDIO_REGISTER", _REGISTER, start, length, _MODE_WP, 0)

    def unwatch(self, start: int, length: int) -> None:
        """Watch these pages no more.

        Raises:
            OSError: there is no memory, or none of a kind that can be watched.
        """
        self._change("UFFDIO_UNREGISTER", _UNREGISTER, start, length)

    def written(self, start: int, end: int) -> list[tuple[int, int]]:
        """The watched pages within [start, end) that were written, which are marked again.

        Memory between that is not watched, or not there, is skipped: ask :meth:`tracked`.
        """
        return self._ask(start, end, _REARM, _WRITTEN)

    def tracked(self, start: int, end: int) -> list[tuple[int, int]]:
        """What of [start, end) is watched. Memory that was unmapped or moved meanwhile is not."""
        return self._ask(start, end, 0, _WPALLOWED)

    def close(self) -> None:
        """Give both file descriptors back; the kernel then lets go of all that was watched."""
        try:
            os.close(self._uffd)
        finally:
            os.close(self._pagemap)

    def _change(self, step: str, request: int, *numbers: int) -> None:
        argument = (ctypes.c_uint64 * len(numbers))(*numbers)
        _checked(step, _libc().ioctl(self._uffd, request, ctypes.byref(argument)))

    def _ask(self, start: int, end: int, flags: int, category: int) -> list[tuple[int, int]]:
        # Written and nothing else is what the kernel has a fast path for.
        question, found = self._question, []
        question.start, question.end, question.flags = start, end, flags
        question.category_mask = question.return_mask = category
        while question.start < end:
            count = _libc_with_gil().ioctl(self._pagemap, _SCAN, ctypes.byref(question))
            if count:
                _checked("PAGEMAP_SCAN", count)
                found += [(region.start, region.end) for region in self._regions[:count]]
            question.start = question.walk_end
        return found


def collapse(start: int, length: int) -> bool:
    """Ask for huge pages, which make a scan eight times faster; content and addresses stay.

    Memory that was never touched becomes real by it. Takes 0.65 to 2 s for 1 GB. A write is
    reported at its small page all the same. Gives False where the kernel cannot or may not.
    """
    madvise = _libc().madvise
    return bool(
        madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), ctypes.c_int(_MADV_COLLAPSE)) == 0
    )


@functools.cache
def why_unavailable() -> str | None:
    """Why writes cannot be tracked here, in words, or None if they can.

    Goes once through the whole cycle on memory of its own; later calls repeat the answer.
    """
    if sys.platform != "linux":
        return f"it needs Linux 6.7 or later, and this is {sys.platform}"
    if platform.machine() not in _USERFAULTFD:
        return f"the number of the system call is not known for {platform.machine()}"
    try:
        tracker = WriteTracker()
        try:
            works = _cycle(tracker)
        finally:
            tracker.close()
    except OSError as error:
        step, code = str(error.filename), error.errno or 0
        return _REASONS.get((step, code)) or f"{step} failed: {os.strerror(code)}"
    return None if works else "the kernel does not report the writes of a trial"


def _cycle(tracker: WriteTracker) -> bool:
    """Whether one write to four pages is reported, once, at its page."""
    page = mmap.PAGESIZE
    scratch = mmap.mmap(-1, 4 * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    start = ctypes.addressof(ctypes.c_char.from_buffer(scratch))
    tracker.watch(start, 4 * page)
    asked = [tracker.written(start, start + 4 * page) for _ in range(2)]
    scratch[2 * page] = 1
    asked += [tracker.written(start, start + 4 * page) for _ in range(2)]
    return asked == [
        [(start, start + 4 * page)],
        [],
        [(start + 2 * page, start + 3 * page)],
        [],
    ]


def _open_userfaultfd() -> int:
    number = ctypes.c_long(_USERFAULTFD[platform.machine()])
    flags = ctypes.c_long(_USER_MODE_ONLY | os.O_CLOEXEC)
    descriptor = _checked("userfaultfd", _libc().syscall(number, flags))
    wanted = (ctypes.c_uint64 * 3)(_UFFD_API, _ASYNC | _UNPOPULATED, 0)
    try:
        _checked("UFFDIO_API", _libc().ioctl(descriptor, _API, ctypes.byref(wanted)))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _checked(step: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), step)
    return result


@functools.cache
def _libc() -> Any:
    return _declared(ctypes.CDLL(None, use_errno=True))


@functools.cache
def _libc_with_gil() -> Any:
    # A scan takes microseconds; giving the GIL to a busy thread would cost milliseconds.
    return _declared(ctypes.PyDLL(None, use_errno=True))


def _declared(library: Any) -> Any:
    library.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
    return library
