"""Who else can write to memory: private, shared and file mappings, and where they begin and end."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from frostline.guarding.pages.mappings import Private
from tests.guarding.pages.in_child import PAGE, Scratch

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc of Linux")

SHARED = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS


def span(tensor: torch.Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes


def reason_of(tensor: torch.Tensor) -> str | None:
    return Private().why_not(*span(tensor))


@pytest.mark.parametrize("count", [10, 10_000_000])
def test_memory_of_this_process_is_private(count) -> None:
    assert reason_of(torch.zeros(count)) is None
    assert Private().why_not(0, 16) is None


def test_shared_memory_of_tensors() -> None:
    tensor = torch.zeros(10_000)
    assert reason_of(tensor) is None
    tensor.share_memory_()
    assert "other processes" in str(reason_of(tensor))
    assert reason_of(tensor.clone()) is None


def test_a_mapped_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights of a model.safetensors"
    safetensors.torch.save_file({"w": torch.randn(5000)}, path)
    for tensor in (
        torch.from_file(str(path), size=1000, shared=False),
        torch.from_file(str(path), size=1000, shared=True),
    ):
        assert reason_of(tensor) is not None
    private = torch.from_file(str(path), size=1000, shared=False)
    assert "weights of a model.safetensors" in str(reason_of(private))


def test_ranges_meet_a_mapping_with_their_last_and_first_byte() -> None:
    memory = Scratch(4, flags=SHARED)
    found = Private()
    start, end = memory.start, memory.end
    inside = [(start, end), (start, start + 1), (end - 1, end), (start + PAGE, start + 2 * PAGE)]
    over = [(start - PAGE, start + 1), (end - 1, end + PAGE)]
    assert all(found.why_not(*place) for place in inside + over)


def test_every_mapping_is_judged_by_its_own_line() -> None:
    maps = Path("/proc/self/maps")
    before, found, after = maps.read_text(), Private(), maps.read_text()
    same = set(before.splitlines()) & set(after.splitlines())
    assert len(same) > 20
    for line in same:
        place, flags, _, _, inode, *_ = line.split()
        start, end = (int(edge, 16) for edge in place.split("-"))
        open_to_others = flags[3] == "s" or inode != "0"
        for first, last in ((start, start + 1), (end - 1, end), (start, end)):
            assert (found.why_not(first, last) is not None) is open_to_others, line


def test_a_hole_behind_a_shared_mapping_is_no_part_of_it() -> None:
    found, lines = Private(), Path("/proc/self/maps").read_text().splitlines()
    places = [tuple(int(edge, 16) for edge in line.split()[0].split("-")) for line in lines]
    starts = {start for start, _ in places}
    holes = [end for _, end in places if end not in starts]
    assert holes
    assert [found.why_not(hole, hole + 1) for hole in holes] == [None] * len(holes)


def test_it_is_known_as_of_its_moment() -> None:
    before = Private()
    memory = Scratch(2000, flags=SHARED)
    assert Private().why_not(memory.start, memory.end)
    assert isinstance(before.why_not(memory.start, memory.end), str | None)
