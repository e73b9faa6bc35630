"""The patrol: every byte is read within the announced number of steps, whatever the moment."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline import checksums
from frostline.guarding import patrol as patrolling
from frostline.guarding.patrol import LEAST_SECONDS, Patrol
from frostline.guarding.reference import BLOCK, DeviceBlocks, Reference

KEY = 77
STEP = 0.01
CHUNK = patrolling._CHUNK


class Clock:
    """Time that passes by bytes read: `speed` bytes a second, so that quotas are exact."""

    def __init__(self, speed: float) -> None:
        self.speed, self.read = speed, 0

    def perf_counter(self) -> float:
        return self.read / self.speed


class Counted:
    """Blocks that note which of their bytes were read, in what order."""

    def __init__(self, blocks, clock: Clock, unit: int) -> None:
        self._blocks, self._clock, self.unit = blocks, clock, unit
        self.nbytes, self.count = blocks.nbytes, blocks.count
        self.log: list[tuple[int, int]] = []

    def bytes_of(self, first: int, last: int) -> int:
        return self._blocks.bytes_of(first, last)

    def changed(self, first: int, last: int) -> list[int]:
        self._clock.read += self.bytes_of(first, last)
        self.log += [(self.unit, i) for i in range(first, last)]
        return self._blocks.changed(first, last)


class CountedOnDevice(DeviceBlocks):
    """The same for the blocks of a device."""

    def __init__(self, piece, key: int, clock: Clock) -> None:
        super().__init__(piece, key)
        self._clock = clock

    def differ(self, first: int, last: int):
        self._clock.read += self.bytes_of(first, last)
        return super().differ(first, last)


def clock_in(patch: pytest.MonkeyPatch) -> Clock:
    """The patrol's own time, until the patch is undone."""
    clock = Clock(1e9)
    patch.setattr(patrolling, "time", clock)
    return clock


@pytest.fixture
def clock(monkeypatch) -> Clock:
    return clock_in(monkeypatch)


def counted(sizes: Sequence[int], clock: Clock) -> tuple[list[torch.Tensor], list[Reference]]:
    tensors = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes]
    references = [Reference(f"t{i}", t, KEY, keep_copy=False) for i, t in enumerate(tensors)]
    for i, reference in enumerate(references):
        reference._blocks = [Counted(piece, clock, i) for piece in reference.pieces]
    return tensors, references


def log_of(references: Sequence[Reference]) -> int:
    return sum(len(piece.log) for reference in references for piece in reference.pieces)


def read_since(references: Sequence[Reference], marks: Sequence[int]) -> set[tuple[int, int]]:
    return {
        entry
        for reference, mark in zip(references, marks, strict=True)
        for entry in reference.pieces[0].log[mark:]
    }


SIZES = st.lists(st.integers(1, 12 * BLOCK), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, per_step=st.integers(20_000, 3 << 20), start=st.integers(0, 9))
def test_from_any_moment_all_is_read_within_what_is_announced(sizes, per_step, start) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = clock_in(patch)
        _, references = counted(sizes, clock)
        clock.speed = per_step / STEP
        patrol = Patrol(references, overhead=1.0)
        patrol.run(None)
        patrol.run(STEP)
        announced = patrol.announced
        assert announced is not None
        for _ in range(start):
            patrol.run(STEP)
        everything = {(i, b) for i, r in enumerate(references) for b in range(r.pieces[0].count)}
        marks = [len(r.pieces[0].log) for r in references]
        for _ in range(announced):
            before = clock.read
            patrol.run(STEP)
            # One piece of work may go over the share, by less than a block.
            assert clock.read - before <= max(per_step + BLOCK, LEAST_SECONDS * clock.speed + BLOCK)
        assert read_since(references, marks) == everything
        assert patrol.announced >= patrol.longest_cycle
        assert patrol.announced <= max(announced, patrol.longest_cycle)


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, per_step=st.integers(20_000, 1 << 20), data=st.data())
def test_a_bit_flipped_at_any_moment_is_reported_in_time(sizes, per_step, data) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = clock_in(patch)
        clock.speed = per_step / STEP
        tensors, references = counted(sizes, clock)
        patrol = Patrol(references, overhead=1.0)
        for _ in range(data.draw(st.integers(2, 30))):
            assert patrol.run(STEP) == []
        which = data.draw(st.integers(0, len(sizes) - 1))
        tensors[which][data.draw(st.integers(0, sizes[which] - 1))] ^= 1
        steps = next(n for n in range(1, 10_000) if patrol.run(STEP))
        assert patrol.announced is not None
        assert steps <= patrol.announced


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 3 * checksums.BLOCK), min_size=1, max_size=4), data=st.data())
def test_verdicts_of_a_device_come_one_step_later(sizes, data) -> None:
    with pytest.MonkeyPatch.context() as patch:
        clock = clock_in(patch)
        clock.speed = data.draw(st.integers(1 << 16, 1 << 20)) / STEP
        tensors, references = counted(sizes, clock)
        for reference, tensor in zip(references, tensors, strict=True):
            reference._blocks = [CountedOnDevice(tensor, KEY, clock)]
        patrol = Patrol(references, overhead=1.0)
        for _ in range(data.draw(st.integers(2, 12))):
            assert patrol.run(STEP) == []
        which = data.draw(st.integers(0, len(sizes) - 1))
        # What was hashed before the write is equal, and says so a step later.
        tensors[which][data.draw(st.integers(0, sizes[which] - 1))] ^= 1
        steps = next(n for n in range(1, 1000) if references[which] in patrol.run(STEP))
        assert 2 <= steps <= patrol.announced + 1


def test_a_verdict_on_its_way_can_be_fetched_at_once(clock) -> None:
    tensors, (reference,) = counted([checksums.BLOCK], clock)
    reference._blocks = [CountedOnDevice(tensors[0], KEY, clock)]
    patrol = Patrol([reference], overhead=1.0)
    tensors[0][5] ^= 1
    assert patrol.run(STEP) == []
    assert patrol.rest() == [reference]
    assert patrol.rest() == []


@pytest.mark.parametrize("overhead", [0, 0.0])
def test_without_overhead_nothing_is_read(clock, overhead) -> None:
    tensors, references = counted([5, 100_000], clock)
    patrol = Patrol(references, overhead)
    tensors[0][0] ^= 1
    assert [patrol.run(STEP) for _ in range(20)] == [[]] * 20
    assert clock.read == 0
    assert patrol.announced is None


def test_nothing_to_read_is_announced_as_nothing() -> None:
    empty = Reference("e", torch.empty(0), KEY, keep_copy=False)
    for references in ([], [empty]):
        patrol = Patrol(references, 0.01)
        assert patrol.announced == 0
        assert patrol.run(STEP) == []


def test_before_the_first_step_time_is_known_it_reads_and_announces_nothing(clock) -> None:
    _, references = counted([40 * CHUNK], clock)
    patrol = Patrol(references, 0.01)
    for _ in range(3):
        patrol.run(None)
    assert patrol.announced is None
    assert 3 * LEAST_SECONDS * clock.speed <= clock.read <= 3 * CHUNK


def shares(patrol: Patrol, clock: Clock, times: Sequence[float]) -> list[int]:
    found = []
    for seconds in times:
        before = clock.read
        patrol.run(seconds)
        found.append(clock.read - before)
    return found


def test_the_share_follows_the_length_of_steps(clock) -> None:
    _, references = counted([60 * CHUNK], clock)
    patrol = Patrol(references, overhead=0.01)
    patrol.run(None)
    per_second = 0.01 * clock.speed
    first, near, near2, longer, shorter = shares(patrol, clock, [0.2, 0.39, 0.11, 0.6, 0.1])
    assert first == near == near2, "steps that differ by less than twice keep the share"
    for share, seconds in ((first, 0.2), (longer, 0.6), (shorter, 0.1)):
        assert 0 <= share - seconds * per_second < BLOCK


def test_steps_that_become_three_times_shorter_are_announced(clock) -> None:
    _, references = counted([20 * CHUNK], clock)
    patrol = Patrol(references, overhead=0.01)
    patrol.run(None)
    patrol.run(0.3)
    before = patrol.announced
    patrol.run(0.1)
    after = patrol.announced
    assert after >= 2 * before
    marks = [len(references[0].pieces[0].log)]
    for _ in range(after):
        patrol.run(0.1)
    assert len(read_since(references, marks)) == references[0].pieces[0].count


def test_however_short_the_step_something_is_read(clock) -> None:
    clock.speed = 1e10  # so that the least share is several blocks
    _, references = counted([20 * CHUNK], clock)
    patrol = Patrol(references, overhead=0.01)
    patrol.run(None)
    (share,) = shares(patrol, clock, [1e-7])
    assert 0 <= share - LEAST_SECONDS * clock.speed < BLOCK


def test_no_step_reads_anything_twice(clock) -> None:
    _, references = counted([3, 70_000, 1], clock)
    patrol = Patrol(references, overhead=1.0)
    patrol.run(None)
    for _ in range(5):
        before = log_of(references)
        patrol.run(10.0)
        assert log_of(references) - before == 4
    assert patrol.announced <= 2


def test_many_tiny_tensors_with_the_real_clock() -> None:
    tensors = [torch.randn(3) for _ in range(3000)]
    references = [Reference(f"t{i}", t, KEY, keep_copy=False) for i, t in enumerate(tensors)]
    patrol = Patrol(references, overhead=0.01)
    assert patrol.run(None) == []
    for _ in range(3):
        assert patrol.run(0.001) == []
    tensors[-1][0] += 1
    started, found = time.perf_counter(), []
    while not found:
        found = patrol.run(0.001)
        assert time.perf_counter() - started < 20
    assert found == [references[-1]]
    assert patrol.cycles >= 0


def test_a_let_go_reference_is_left_out() -> None:
    kept, gone = torch.randn(10), torch.randn(10)
    references = [Reference("w", t, KEY, keep_copy=False) for t in (kept, gone)]
    assert not references[1].rebind(gone.double())
    assert Patrol(references, 0.01).nbytes == 40


class Interrupted:
    """A clock of a process that is put aside whenever it looks at it."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now


def test_a_process_that_was_put_aside_goes_on_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.zeros(4 * BLOCK // 4)
    patrol = Patrol([Reference("w", tensor, KEY, keep_copy=False)], 0.01)
    monkeypatch.setattr(patrolling, "time", Interrupted())
    patrol.run(1e-3)
    patrol.run(1e-3)
    tensor[0] = 1.0
    assert patrol.announced
    assert any(patrol.run(1e-3) for _ in range(patrol.announced))
