"""Records of pages: what is told of writes and reads, sharing, fork, and what is lost."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from frostline.errors import PagesUnavailable
from frostline.guarding.pages import kernel
from frostline.guarding.pages import record as pages
from frostline.guarding.pages.ranges import joined
from frostline.guarding.pages.record import PAGE, PageRecord, interior
from tests.guarding.pages import page_writers
from tests.guarding.pages.in_child import LIBC, Scratch, in_child, refuse
from tests.guarding.pages.page_writers import AT, SIZE

pytestmark = pytest.mark.skipif(
    kernel.why_unavailable() is not None, reason=str(kernel.why_unavailable())
)


@pytest.fixture(autouse=True)
def _nothing_stays_watched():
    yield
    for record in list(pages._witness.records):
        record.close()
    assert pages._witness.tracker is None


def span_of(tensor: Tensor) -> tuple[int, int]:
    return interior(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)


def watched(start: int, end: int) -> list[tuple[int, int]]:
    """Whoever watches it: another tracker sees that too."""
    other = kernel.WriteTracker()
    try:
        return other.tracked(start, end)
    finally:
        other.close()


def as_set(ranges):
    return {page for start, end in ranges for page in range(start, end)}


# --- writers and readers -----------------------------------------------------------------------


@pytest.mark.parametrize("write", page_writers.ONE.values(), ids=page_writers.ONE)
def test_a_write_is_told_at_its_page_and_nowhere_else(write):
    t = torch.randn(SIZE)
    record = PageRecord([span_of(t)])
    write(t)
    page = (t.data_ptr() + 4 * AT) // PAGE * PAGE
    assert record.written() == [(page, page + PAGE)]
    assert record.written() == []
    assert record.verify() == []


@pytest.mark.parametrize("write", page_writers.ALL.values(), ids=page_writers.ALL)
def test_a_write_of_everything_is_told_everywhere(write):
    t = torch.randn(SIZE)
    before = t.clone()
    record = PageRecord([span_of(t)])
    write(t)
    assert not torch.equal(t, before)
    assert record.written() == [span_of(t)]
    assert record.written() == []


@pytest.mark.parametrize("read", page_writers.READERS.values(), ids=page_writers.READERS)
def test_a_reader_is_not_told(read):
    t = torch.randn(SIZE)
    record = PageRecord([span_of(t)])
    read(t)
    assert record.written() == []
    t[AT] = 0
    assert len(record.written()) == 1


def test_a_read_past_the_cache_of_files_is_told(tmp_path):
    path, t = tmp_path / "direct", torch.randn(SIZE)
    path.write_bytes(bytes(PAGE))
    try:
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    start = span_of(t)[0]
    record = PageRecord([span_of(t)])
    target = (ctypes.c_char * PAGE).from_address(start + 3 * PAGE)
    assert os.readv(file, [target]) == PAGE
    os.close(file)
    assert record.written() == [(start + 3 * PAGE, start + 4 * PAGE)]


def huge_bytes(address: int) -> int:
    """Bytes in huge pages of the mapping at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            low, high = (int(number, 16) for number in first.split("-"))
            inside = low <= address < high
        elif inside and first == "AnonHugePages:":
            return int(line.split()[1]) << 10
    return 0


@pytest.mark.parametrize("large", [True, False])
def test_large_ranges_alone_become_huge_pages_and_keep_content(large, monkeypatch):
    if not kernel.collapse((scratch := Scratch(2048)).start, scratch.length):
        pytest.skip("this kernel makes no huge pages on demand")
    asked = []
    collapse = kernel.collapse
    # What is asked for, not what is there: an allocator hands out memory that is huge already.
    monkeypatch.setattr(
        kernel,
        "collapse",
        lambda start, length: asked.append((start, length)) or collapse(start, length),
    )
    t = torch.randn((pages.COLLAPSE - PAGE) // 4 + (4096 if large else 0))
    before, start = t.clone(), t.data_ptr()
    low, high = span_of(t)
    record = PageRecord([(low, high)], huge=True)
    assert (t.data_ptr(), torch.equal(t, before)) == (start, True)
    assert asked == ([(low, high - low)] if large else [])
    assert huge_bytes((low + high) // 2) > 0 or not large
    assert (record.written(), record.verify()) == ([], [])
    for address in (low, low + (4 << 20) + 5, high - 1):
        for _ in range(2):
            ctypes.memset(address, 1, 1)
            [(first, last)] = record.written()
            assert first <= address < last


# --- sharing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_records_writes_and_looks(seed):
    """Against sets of page numbers: overlapping records, opened and closed in any order."""
    rng, memory = random.Random(seed), Scratch(64)
    model: dict[PageRecord, tuple[set[int], set[int]]] = {}
    for _ in range(300):
        action, record = rng.randrange(6), rng.choice([None, *model])
        if action <= 2:
            page = rng.randrange(64)
            memory.write(page)
            for mine, news in model.values():
                news |= {page} & mine
        elif action == 3 and len(model) < 6:
            parts = [(s := rng.randrange(60), s + rng.randrange(1, 5)) for _ in range(3)]
            new = PageRecord([memory.pages(*part) for part in parts])
            model[new] = as_set(parts), set()
        elif record is not None and action == 4:
            record.close()
            del model[record]
        elif record is not None:
            mine, news = model[record]
            assert as_set(memory.numbers(record.written())) == news
            assert record.verify() == []
            news.clear()
        held = set().union(*(mine for mine, _ in model.values()))
        assert as_set(memory.numbers(watched(memory.start, memory.end))) == held


def test_closing_twice_and_asking_afterwards():
    memory = Scratch(4)
    record = PageRecord([memory.pages(0, 4)])
    record.close()
    record.close()
    memory.write(1)
    assert (record.written(), record.verify(), record.closed) == ([], [], True)


def test_records_of_nothing_and_of_overlapping_ranges():
    empty, memory = PageRecord([]), Scratch(8)
    nothing = PageRecord([memory.pages(2, 2)])
    twice = PageRecord([memory.pages(0, 4), memory.pages(2, 6), memory.pages(7, 8)])
    for page in (3, 6, 7):
        memory.write(page)
    assert [r.written() for r in (empty, nothing)] == [[], []]
    assert memory.numbers(twice.written()) == [(3, 4), (7, 8)]


def test_ranges_far_apart_and_near():
    """They are asked for in one call when near; what lies between is another's, or nobody's."""
    memory, far = Scratch(2000), pages._GAP // PAGE + 1
    parts = [(0, 2), (5, 7), (7 + far, 9 + far), (1990, 2000)]
    record, between = (
        PageRecord([memory.pages(*part) for part in given]) for given in (parts, [(2, 4)])
    )
    assert len(record.spans) < len(parts)
    for page in (1, 3, 4, 6, 8, 8 + far, 1500, 1995):
        memory.write(page)
    told = [(1, 2), (6, 7), (8 + far, 9 + far), (1995, 1996)]
    assert memory.numbers(record.written()) == told
    assert memory.numbers(between.written()) == [(3, 4)]


@pytest.mark.parametrize("change", [(1, 0), (0, 1), (-1, 0)])
def test_parts_of_pages_are_refused(change):
    start, end = Scratch(4).pages(1, 3)
    with pytest.raises(ValueError, match=r"expected whole pages.*interior"):
        PageRecord([(start + change[0], end + change[1])])


def test_nothing_between_two_looks_gets_lost():
    memory, stop = Scratch(2000), threading.Event()
    record, other = (PageRecord([memory.pages(0, 2000)]) for _ in range(2))

    def write() -> None:
        for page in range(2000):
            memory.write(page)
        stop.set()

    seen: list[list[tuple[int, int]]] = [[], []]
    thread = threading.Thread(target=write)
    thread.start()
    while not stop.is_set():
        for told, who in zip(seen, (record, other), strict=True):
            told += who.written()
            time.sleep(0)
    thread.join()
    for told, who in zip(seen, (record, other), strict=True):
        told += who.written()
        assert joined(told) == [memory.pages(0, 2000)]


def test_a_record_of_another_thread():
    memory, made = Scratch(4), []

    def run(function) -> None:
        thread = threading.Thread(target=function)
        thread.start()
        thread.join()

    run(lambda: made.append(PageRecord([memory.pages(0, 4)])))
    memory.write(2)
    assert memory.numbers(made[0].written()) == [(2, 3)]
    run(made[0].close)
    assert watched(memory.start, memory.end) == []


def test_many_threads_at_once():
    memory, failures = Scratch(64), []

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(40):
            first = rng.randrange(48)
            record = PageRecord([memory.pages(first, first + 16)])
            mine = first + rng.randrange(16)
            memory.write(mine)
            if mine not in as_set(memory.numbers(record.written())) or record.verify():
                failures.append(number)
            record.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# --- other processes ---------------------------------------------------------------------------


def test_a_forked_child_has_a_closed_record_and_disturbs_nothing():
    t = torch.randn(SIZE)
    record = PageRecord([span_of(t)])
    t[AT] = 1

    def child() -> object:
        t.fill_(3.0)
        answers = [record.closed, record.written(), record.verify()]
        record.close()
        own = PageRecord([span_of(t)])
        t[0 if span_of(t)[0] == t.data_ptr() else 2 * PAGE] = 4.0
        return [*answers, len(own.written()), own.verify()]

    assert in_child(child) == [True, [], [], 1, []]
    page = (t.data_ptr() + 4 * AT) // PAGE * PAGE
    assert record.written() == [(page, page + PAGE)]
    assert (record.closed, record.verify()) == (False, [])
    t[AT] = 2
    assert record.written() == [(page, page + PAGE)]


def test_a_fork_beside_a_busy_thread_can_look():
    """The lock is free in the child, whoever held it in the parent."""
    memory, stop = Scratch(4000), threading.Event()
    record = PageRecord([memory.pages(0, 4000)])

    def busy() -> None:
        while not stop.is_set():
            record.verify()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(10):
            assert in_child(lambda: PageRecord([memory.pages(0, 4)]).verify()) == []
    finally:
        stop.set()
        thread.join()


def test_limit_writes_by_another_process_to_shared_memory_are_not_told():
    t = torch.zeros(SIZE).share_memory_()
    record = PageRecord([span_of(t)])
    in_child(lambda: t.fill_(1.0) is None)
    assert (t[AT].item(), record.written(), record.verify()) == (1.0, [], [])
    t[AT] = 2.0
    assert len(record.written()) == 1


def test_limit_an_edit_of_the_file_on_disk_is_not_told(tmp_path):
    path = tmp_path / "t.safetensors"
    save_file({"t": torch.zeros(SIZE)}, path)
    t = load_file(path)["t"]
    record = PageRecord([span_of(t)])
    with open(path, "r+b") as file:
        file.seek(os.path.getsize(path) - 4 * (SIZE - AT))
        file.write(b"\1\1\1\1")
    assert t[AT].item() != 0
    assert (record.written(), record.verify()) == ([], [])
    t[AT] = 2.0
    assert len(record.written()) == 1


# --- lost --------------------------------------------------------------------------------------


def test_unmapped_memory_is_lost_not_clean():
    memory = Scratch(8)
    record = PageRecord([memory.pages(0, 8)])
    memory.unmap(3, 5)
    assert (record.written(), memory.numbers(record.verify())) == ([], [(3, 5)])
    memory.map_again(3, 5)
    memory.write(1)
    memory.write(4)
    assert memory.numbers(record.written()) == [(1, 2)]
    assert memory.numbers(record.verify()) == [(3, 5)]
    again = PageRecord([memory.pages(2, 6)])
    memory.write(4)
    assert memory.numbers(again.written()) == [(4, 5)]
    assert (again.verify(), memory.numbers(record.verify())) == ([], [(3, 5)])
    record.close()
    assert memory.numbers(watched(memory.start, memory.end)) == [(2, 6)]


def test_a_loss_is_not_hidden_by_a_new_record_of_the_place():
    memory = Scratch(8)
    first = PageRecord([memory.pages(0, 8)])
    memory.unmap(3, 5)
    memory.map_again(3, 5)
    PageRecord([memory.pages(0, 8)])
    assert memory.numbers(first.verify()) == [(3, 5)]


def test_a_record_can_be_closed_when_all_its_memory_is_gone():
    memory = Scratch(8)
    record, rest = PageRecord([memory.pages(0, 4)]), PageRecord([memory.pages(6, 8)])
    memory.unmap(0, 4)
    record.close()
    memory.map_again(0, 4)
    memory.write(7)
    assert memory.numbers(rest.written()) == [(7, 8)]


def test_what_is_left_is_let_go_beside_memory_of_another_kind():
    memory = Scratch(8)
    record, rest = PageRecord([memory.pages(0, 6)]), PageRecord([memory.pages(6, 8)])
    droppable = 0x08  # a kind that no userfaultfd takes, so that the whole range is refused
    try:
        memory.map_again(2, 3, droppable)
    except OSError:
        pytest.skip("needs Linux 6.11")
    record.close()
    assert memory.numbers(watched(memory.start, memory.end)) == [(6, 8)]
    memory.write(7)
    assert memory.numbers(rest.written()) == [(7, 8)]


def test_freed_storage_is_lost():
    # Memory of its own: malloc may keep even a large block for itself when it is freed.
    t = torch.frombuffer(mmap.mmap(-1, 1 << 24), dtype=torch.uint8)
    record = PageRecord([span_of(t)])
    span = span_of(t)
    del t
    assert record.written() == []
    assert record.verify() == [span]


def test_moved_memory_is_lost():
    def child() -> object:
        memory = Scratch(8)
        record = PageRecord([memory.pages(0, 8)])
        LIBC.mremap.restype = ctypes.c_void_p
        old, size = ctypes.c_void_p(memory.start), ctypes.c_size_t(memory.length)
        target = Scratch(8)
        may_move_to = 3
        LIBC.mremap(old, size, size, ctypes.c_int(may_move_to), ctypes.c_void_p(target.start))
        return [record.written(), memory.numbers(record.verify())]

    assert in_child(child) == [[], [[0, 8]]]


def test_closed_file_descriptors_are_a_loss_of_everything():
    def child() -> object:
        memory = Scratch(8)
        record, other = (PageRecord([memory.pages(*p)]) for p in ((0, 4), (2, 8)))
        tracker = pages._witness.tracker
        assert tracker is not None
        os.close(tracker._pagemap)
        answers = [record.written(), record.verify(), other.written(), other.verify()]
        numbers = [memory.numbers(answer) for answer in answers]
        with pytest.raises(PagesUnavailable):
            PageRecord([memory.pages(0, 8)])
        record.close()
        other.close()
        return numbers

    assert in_child(child) == [[[0, 4]], [[0, 4]], [[2, 8]], [[2, 8]]]


# --- refused -----------------------------------------------------------------------------------


def test_refused_memory_leaves_nothing_behind():
    memory, other = Scratch(8), kernel.WriteTracker()
    held = PageRecord([memory.pages(0, 2)])
    other.watch(memory.pages(6, 8)[0], 2 * PAGE)
    with pytest.raises(PagesUnavailable, match=r"UFFDIO_REGISTER failed: .*busy"):
        PageRecord([memory.pages(0, 4), memory.pages(6, 8)])
    other.close()
    assert memory.numbers(watched(memory.start, memory.end)) == [(0, 2)]
    memory.write(1)
    assert memory.numbers(held.written()) == [(1, 2)]
    held.close()
    assert watched(memory.start, memory.end) == []


def test_memory_that_is_not_there_is_refused():
    memory = Scratch(8)
    memory.unmap(4, 8)
    with pytest.raises(PagesUnavailable, match="UFFDIO_REGISTER failed"):
        PageRecord([memory.pages(0, 2), memory.pages(4, 8)])
    assert pages._witness.tracker is None
    memory.map_again(4, 8)


def test_a_refusing_system_says_why():
    def child() -> object:
        refuse(kernel._USERFAULTFD[os.uname().machine], 1)
        kernel.why_unavailable.cache_clear()
        try:
            PageRecord([Scratch(4).pages(0, 4)])
        except PagesUnavailable as error:
            return str(error)
        return None

    assert "userfaultfd is refused here (seccomp" in in_child(child)
