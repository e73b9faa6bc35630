"""The kernel's side: the cycle, long answers, what is told when it is refused."""

from __future__ import annotations

import errno
import os
import platform
import sys

import pytest

from frostline.guarding.pages import kernel
from tests.guarding.pages.in_child import IOCTL, PAGE, Scratch, in_child, refuse

needs_tracking = pytest.mark.skipif(
    kernel.why_unavailable() is not None, reason=str(kernel.why_unavailable())
)
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="system calls of Linux")


@pytest.fixture
def tracker():
    tracker = kernel.WriteTracker()
    yield tracker
    tracker.close()


@needs_tracking
def test_a_write_is_told_once_at_its_page(tracker):
    memory = Scratch(8)
    tracker.watch(memory.start, memory.length)
    asked = []
    for pages in ([], [], [3], [], [0, 1, 7], [3]):
        for page in pages:
            memory.write(page)
        asked.append(memory.numbers(tracker.written(memory.start, memory.end)))
    assert asked == [[(0, 8)], [], [(3, 4)], [], [(0, 2), (7, 8)], [(3, 4)]]


@needs_tracking
def test_only_what_is_asked_for_is_told_and_marked_again(tracker):
    memory = Scratch(8)
    tracker.watch(memory.start, memory.length)
    tracker.written(memory.start, memory.end)
    memory.write(2)
    memory.write(6)
    assert memory.numbers(tracker.written(*memory.pages(0, 6))) == [(2, 3)]
    assert memory.numbers(tracker.written(memory.start, memory.end)) == [(6, 7)]


@needs_tracking
@pytest.mark.parametrize("count", [kernel.REGIONS - 1, kernel.REGIONS, kernel.REGIONS + 1, 1300])
def test_answers_longer_than_one_call(tracker, count):
    memory = Scratch(2 * count)
    tracker.watch(memory.start, memory.length)
    tracker.written(memory.start, memory.end)
    for page in range(0, 2 * count, 2):
        memory.write(page)
    told = memory.numbers(tracker.written(memory.start, memory.end))
    assert told == [(page, page + 1) for page in range(0, 2 * count, 2)]
    assert tracker.written(memory.start, memory.end) == []


@needs_tracking
def test_watching_twice_keeps_the_news(tracker):
    memory = Scratch(4)
    tracker.watch(memory.start, memory.length)
    tracker.written(memory.start, memory.end)
    memory.write(1)
    tracker.watch(memory.start, memory.length)
    assert memory.numbers(tracker.written(memory.start, memory.end)) == [(1, 2)]


@needs_tracking
def test_unwatched_pages_are_skipped_and_known(tracker):
    memory = Scratch(8)
    tracker.watch(memory.start, memory.length)
    tracker.written(memory.start, memory.end)
    tracker.unwatch(memory.pages(2, 4)[0], 2 * PAGE)
    for page in (1, 2, 3, 4):
        memory.write(page)
    assert memory.numbers(tracker.written(memory.start, memory.end)) == [(1, 2), (4, 5)]
    assert memory.numbers(tracker.tracked(memory.start, memory.end)) == [(0, 2), (4, 8)]


@needs_tracking
def test_a_page_that_was_never_touched_can_be_read_without_a_report(tracker):
    memory = Scratch(4)
    memory.unmap(0, 4)
    memory.map_again(0, 4)
    tracker.watch(memory.start, memory.length)
    tracker.written(memory.start, memory.end)
    assert memory.memory[PAGE] == 0
    assert tracker.written(memory.start, memory.end) == []
    memory.write(2)
    assert memory.numbers(tracker.written(memory.start, memory.end)) == [(2, 3)]


@needs_tracking
def test_pages_dropped_for_zeros_are_told(tracker):
    """MADV_DONTNEED changes content without a write."""
    memory = Scratch(8)
    tracker.watch(memory.start, memory.length)
    tracker.written(memory.start, memory.end)
    memory.memory.madvise(4, 3 * PAGE, 2 * PAGE)
    assert memory.memory[3 * PAGE] == 0
    assert memory.numbers(tracker.written(memory.start, memory.end)) == [(3, 5)]


@needs_tracking
def test_huge_pages_keep_content_and_tell_the_small_page(tracker):
    memory = Scratch(2048)  # 8 MiB hold at least three huge pages
    before = memory.memory[:]
    kernel.collapse(memory.start, memory.length)
    assert memory.memory[:] == before
    tracker.watch(memory.start, memory.length)
    tracker.written(memory.start, memory.end)
    assert tracker.written(memory.start, memory.end) == []
    for page in (700, 1500):
        memory.write(page)
    told = memory.numbers(tracker.written(memory.start, memory.end))
    assert all(any(a <= page < b for a, b in told) for page in (700, 1500))
    memory.write(700)
    told = memory.numbers(tracker.written(memory.start, memory.end))
    assert any(a <= 700 < b for a, b in told)


@needs_tracking
def test_collapse_of_no_memory_is_no_error():
    assert kernel.collapse(PAGE, 4 << 20) is False


@needs_tracking
def test_closing_ends_all_watching_and_gives_the_files_back():
    memory, open_before = Scratch(4), os.listdir("/proc/self/fd")
    first = kernel.WriteTracker()
    first.watch(memory.start, memory.length)
    first.close()
    second = kernel.WriteTracker()
    assert second.tracked(memory.start, memory.end) == []
    second.watch(memory.start, memory.length)
    second.close()
    assert os.listdir("/proc/self/fd") == open_before


@needs_tracking
def test_refused_ranges_say_why(tracker):
    memory, other = Scratch(4), kernel.WriteTracker()
    other.watch(memory.start, memory.length)
    with pytest.raises(OSError, match="busy") as caught:
        tracker.watch(memory.start, memory.length)
    assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, "UFFDIO_REGISTER")
    other.close()
    tracker.watch(memory.start, memory.length)


def _told_when_refused(*refusal: int) -> str | None:
    def ask() -> str | None:
        refuse(*refusal)
        kernel.why_unavailable.cache_clear()
        return kernel.why_unavailable()

    return in_child(ask)


_NUMBER = kernel._USERFAULTFD.get(platform.machine(), -1)


@needs_tracking
@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ((_NUMBER, errno.EPERM), "seccomp, as in Docker's default profile"),
        ((_NUMBER, errno.ENOSYS), "has no userfaultfd"),
        ((_NUMBER, errno.EMFILE), "userfaultfd failed: Too many open files"),
        ((IOCTL, errno.EINVAL, kernel._API), "older than 6.7"),
        ((IOCTL, errno.ENOTTY, kernel._SCAN), "older than 6.7: no PAGEMAP_SCAN"),
        ((IOCTL, errno.EPERM, kernel._SCAN), "PAGEMAP_SCAN failed: Operation not permitted"),
        ((IOCTL, errno.EINVAL, kernel._REGISTER), "UFFDIO_REGISTER failed: Invalid argument"),
    ],
)
def test_a_real_refusal_is_told_in_words(refusal, told):
    assert told in (_told_when_refused(*refusal) or "available")


@needs_tracking
def test_a_refusal_of_something_else_is_none():
    assert _told_when_refused(_NUMBER + 1000, errno.EPERM) is None


@needs_linux
@pytest.mark.parametrize(
    ("attribute", "value", "told"),
    [("sys.platform", "darwin", "needs Linux"), ("platform.machine", "riscv64", "riscv64")],
)
def test_other_systems_are_told(monkeypatch, attribute, value, told):
    monkeypatch.setattr(attribute, (lambda: value) if "machine" in attribute else value)
    assert told in str(kernel.why_unavailable.__wrapped__())


def test_the_answer_is_the_same_each_time():
    assert kernel.why_unavailable() is kernel.why_unavailable()


def test_a_kernel_that_takes_all_calls_passes_the_trial():
    """Else a mistake of ours would skip the tests of this file."""
    assert "trial" not in str(kernel.why_unavailable())
