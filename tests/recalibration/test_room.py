"""Where waiting batches are kept, how much that is, and what is refused."""

from __future__ import annotations

import errno
import gc
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.errors import AccumulationError
from frostline.lockstep.shelving import Shelf
from frostline.lockstep.storing import HostStore
from frostline.recalibration import paging, recalibrate, room
from frostline.recalibration.needs import Alone, Needs
from frostline.recalibration.norms import find
from frostline.recalibration.paging import MappedFile
from frostline.recalibration.running import calibrating, forward
from tests.recalibration import truth

PAGE = 4096
CPU = torch.device("cpu")


def tensors() -> dict[int, int]:
    """Bytes of each tensor of 64 channels that there is, by its address."""
    found = (thing for thing in gc.get_objects() if type(thing) is Tensor)
    with torch._C.DisableTorchFunction():  # nobody uses them
        return {t.data_ptr(): t.nbytes for t in found if t.dim() == 2 and t.shape[1] == 64}


class Probe(nn.Module):
    """Says how many bytes there are where it stands in the model, more than before."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.seen = tensors(), []
        self.every = self.calls = 1

    def count(self, where: int) -> bool:
        return True

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls % self.every:
            return x
        more = ((where, n) for where, n in tensors().items() if where not in self.before)
        self.seen.append(sum(n for where, n in more if self.count(where)))
        return x


def test_needs_are_what_is_alive_at_a_norm() -> None:
    x = torch.randn(100, 64)
    probe, batch = Probe(), x.nbytes

    class Skips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.after = nn.BatchNorm1d(64), nn.BatchNorm1d(64)

        def forward(self, x: Tensor) -> Tensor:
            one, two = x + 1, x + 2
            three = one * two
            del two
            return self.after(probe(one + self.norm(probe(three))))

    model = Skips()
    norms, _ = find(model, None)
    with calibrating(model, norms):
        found = Alone(model, norms).measure(partial(forward, model, x, 0))
    assert found.calls == 2
    assert probe.seen == [2 * batch, 3 * batch]  # at the last norm: one, three and their sum
    assert found.memory == 3 * batch
    assert found.file == 3 * paging.whole_pages(batch)
    assert found.times(3) == Needs(2, 9 * batch, 3 * found.file)


def _in_file(address: int) -> bool:
    maps = Path("/proc/self/maps").read_text().splitlines()
    spans = [line.split()[0].split("-") for line in maps if line.endswith("(deleted)")]
    return any(int(start, 16) <= address < int(end, 16) for start, end in spans)


@pytest.mark.parametrize("on_disk", [True, False])
def test_on_disk_the_memory_is_that_of_one_batch(
    on_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.BatchNorm1d(64) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = x + norm(probe(x + 1))
            return x

    batches = list(torch.randn(1600, 64).split(100))
    probe, batch = Probe(), batches[0].nbytes
    probe.every = 7  # looking takes long
    monkeypatch.setattr(probe, "count", lambda where: not (on_disk and _in_file(where)))
    monkeypatch.setattr(room, "IN_MEMORY", 0 if on_disk else 2**40)
    recalibrate(Blocks(), batches)
    most = max(probe.seen) / batch
    assert (most <= 4) is on_disk, most
    assert (most >= 2 * len(batches)) is not on_disk, most


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_little_stays_in_memory(device: str) -> None:
    here = room.room(Needs(1, room.IN_MEMORY - 7, 99), 7, torch.device(device), 100)
    assert (here.place, here.nbytes) == ("in memory", room.IN_MEMORY)
    with here.waiting(nn.Identity()) as waiting:
        assert waiting is None
    assert str(here) == "about 67.1 MB in memory"


def test_what_is_more_goes_to_disk_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    much = Needs(1, room.IN_MEMORY, 5 * PAGE)
    there = room.room(much, 8, CPU, 100)
    assert there.place.startswith("on disk in ")
    assert there.nbytes == 5 * PAGE + 8
    for gone in (
        lambda patch: patch.setattr(room, "DiskStore", _refuse),
        lambda patch: patch.delattr(room.mmap, "MADV_DONTNEED"),
    ):
        with monkeypatch.context() as patch:
            gone(patch)
            assert room.room(much, 8, CPU, 100).place == "in memory"


def _refuse() -> None:
    raise AccumulationError("all disks are in memory")


@pytest.mark.parametrize("samples", [1000, None])
def test_too_little_memory_is_an_error_that_says_what_fits(
    samples: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_memory", lambda: 10_000_000)
    assert room.room(Needs(1, 8_000_000, 0), 0, CPU, samples).nbytes == 8_000_000
    with pytest.raises(AccumulationError) as error:
        room.room(Needs(1, 16_000_000, 0), 0, CPU, samples)
    fewer = "samples=500, or" if samples else "fewer samples, or"
    assert f'about 16.0 MB in memory, where 10.0 MB are free. Pass {fewer} method="merged"' in str(
        error.value
    )


def test_too_little_disk_is_an_error_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = truth.zoo("resnet18")
    monkeypatch.setattr(room, "IN_MEMORY", 0)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: _Usage)
    before = truth.statistics(model)
    with pytest.raises(AccumulationError, match=r"on disk in .* 1.0 kB are free; TMPDIR"):
        recalibrate(model, [x])
    assert truth.distance(truth.statistics(model), before) == 0


class _Usage:
    free = 1000


def test_memory_that_is_free(tmp_path: Path) -> None:
    assert (room.free_memory() or 0) > 0
    table = tmp_path / "meminfo"
    assert room._of_machine(table) is None
    table.write_text("MemTotal:  900 kB\nMemAvailable:  512 kB\n")
    assert room._of_machine(table) == 512 * 1024


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container(version: int, tmp_path: Path) -> None:
    limit, usage, cached = room._GROUPS[2 - version]
    assert room._of_container(tmp_path) is None
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text("max\n")
    (tmp_path / usage).write_text("700\n")
    (tmp_path / usage).with_name("memory.stat").write_text(f"anon 1\n{cached} 200\n")
    assert room._of_container(tmp_path) is None
    (tmp_path / limit).write_text("800\n")
    assert room._of_container(tmp_path) == 300  # pages of files are given up


# --- the file ----------------------------------------------------------------------------------


def storage_of(*values: float) -> Any:
    return torch.tensor(values * 600, dtype=torch.float64).untyped_storage()


def resident() -> int:
    """Kilobytes of mappings of deleted files that are in memory now."""
    text = Path("/proc/self/smaps").read_text()
    blocks = [b for b in text.split("VmFlags") if "(deleted)" in b]
    return sum(
        int(line.split()[1]) for b in blocks for line in b.splitlines() if line.startswith("Rss:")
    )


def test_a_mapped_file_gives_memory_back_and_keeps_the_bytes(tmp_path: Path) -> None:
    file = MappedFile(str(tmp_path), 100 * PAGE)
    old = storage_of(*range(50))
    new = file.put(old)
    assert new is not None
    tensor = torch.empty(0, dtype=torch.float64).set_(new)
    assert torch.equal(tensor, torch.empty(0, dtype=torch.float64).set_(old))
    tensor[7] = -1.0
    held = resident()
    assert held >= 234  # 50 * 600 * 8 bytes
    assert file.give_back(new)
    assert resident() <= held - 234
    assert tensor[7] == -1.0  # a write through the map stays
    assert not file.give_back(old)
    assert list(tmp_path.iterdir()) == []  # unlinked: nothing is left after a kill


def test_pages_are_used_again_when_the_last_tensor_is_gone(tmp_path: Path) -> None:
    file = MappedFile(str(tmp_path), 4 * PAGE)
    kept = file.put(storage_of(1.0))  # two pages
    assert kept is not None
    view = torch.empty(0, dtype=torch.float64).set_(kept)[5:]
    del kept
    other = file.put(storage_of(2.0))
    assert other is not None
    assert file.put(storage_of(3.0)) is None  # full
    assert view[0] == 1.0
    del view
    third = file.put(storage_of(3.0))
    assert third is not None
    assert torch.empty(0, dtype=torch.float64).set_(other)[0] == 2.0
    assert torch.empty(0, dtype=torch.float64).set_(third)[0] == 3.0


def test_a_full_disk_is_one_error_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = truth.zoo("resnet18")
    before, written = truth.statistics(model), []
    real = os.pwrite

    def fills(file: int, data: Any, start: int) -> int:
        written.append(len(data))
        if len(written) > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data, start)

    monkeypatch.setattr(room, "IN_MEMORY", 0)
    monkeypatch.setattr(os, "pwrite", fills)
    with pytest.raises(AccumulationError, match=r"No space left on device .*TMPDIR"):
        recalibrate(model, list(x.split(4)))
    assert truth.distance(truth.statistics(model), before) == 0


def test_what_does_not_fit_into_the_file_stays_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    known = truth.of_zoo("densenet")
    monkeypatch.setattr(room, "IN_MEMORY", 0)
    monkeypatch.setattr(room, "MappedFile", lambda directory, _: MappedFile(directory, 9 * PAGE))
    recalibrate(known.model, list(known.x.split(4)))
    assert truth.distance(truth.statistics(known.model), known.found) <= known.limit


def test_the_file_is_let_go_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("(deleted)")

    kept: list[Tensor] = []
    monkeypatch.setattr(room, "IN_MEMORY", 0)
    gc.collect()
    before, model = mapped(), nn.Sequential(nn.BatchNorm1d(64), nn.BatchNorm1d(64))
    batches = list(torch.randn(900, 64).split(300))
    gc.disable()
    try:
        recalibrate(model, batches)
        assert mapped() == before
        model[0].register_forward_hook(lambda module, inputs, output: kept.append(output))
        recalibrate(model, batches)
        assert mapped() == before + 1  # somebody has tensors in there
    finally:
        gc.enable()
    means = torch.cat(kept[1:]).mean(0)  # the first batch was measured
    assert means.abs().max() < 1e-5
    del means
    kept.clear()
    gc.collect()
    assert mapped() == before


def test_tensors_of_one_storage_stay_together(tmp_path: Path) -> None:
    class Holds:
        def held(self, run: int) -> list[Tensor]:
            return [whole, part, small, weight]

    whole, small, weight = torch.zeros(30, 100), torch.zeros(3), nn.Parameter(torch.zeros(5000))
    part = whole[3:, ::2]
    pages = paging.Paging(Shelf(HostStore(), [weight]), MappedFile(str(tmp_path), 10**6))
    before = [t.data_ptr() for t in (small, weight)]
    pages.suspend(0, Holds())  # type: ignore[arg-type]
    whole[4, 2] = 7
    assert part[1, 1] == 7
    assert part.stride() == (100, 2)
    assert [t.data_ptr() for t in (small, weight)] == before  # too small, and not the run's own
    where = whole.data_ptr()
    pages.suspend(0, Holds())  # type: ignore[arg-type]
    assert whole.data_ptr() == where
    assert part[1, 1] == 7
