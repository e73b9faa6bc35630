"""Where batches are kept that wait at a norm: in memory, or on disk; and whether they fit there."""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from frostline._names import named_tensors
from frostline.errors import AccumulationError
from frostline.freezing.printing import human
from frostline.lockstep.shelving import Shelf
from frostline.lockstep.storing import DiskStore, HostStore
from frostline.lockstep.waiting import Waiting
from frostline.recalibration.needs import Needs
from frostline.recalibration.paging import MappedFile, Paging

# Bytes that stay in the memory of a CPU: files are for more.
IN_MEMORY = 64 * 2**20
SHARE_OF_DEVICE = 0.8  # of what is free there, before it goes to the host
_SHARE = 0.8  # of what is free, since others want some


@dataclass(frozen=True)
class Room:
    """A place that has room enough.

    Attributes:
        nbytes: about what will be there at most.
        place: where that is, in words.
        waiting: opens what puts it there, for a model; that is None where it stays where it is.
    """

    nbytes: int
    place: str
    waiting: Callable[[nn.Module], AbstractContextManager[Waiting | None]]

    def __str__(self) -> str:
        return f"about {human(self.nbytes)}B {self.place}"


def room(needed: Needs, loaded: int, device: torch.device, samples: int | None) -> Room:
    """A place for all waiting batches.

    Args:
        needed: by all of them together.
        loaded: bytes of the batches themselves.
        device: where the model runs.
        samples: how many samples were asked for, None if all.

    Raises:
        AccumulationError: there is no such place.
    """
    memory = needed.memory + loaded
    if device.type == "cuda":
        if memory <= SHARE_OF_DEVICE * free_on(device):
            return Room(memory, f"on {device}", _where_it_is)
        return _fitting(Room(memory, "in the host's memory", _on_host), free_memory(), samples)
    directory = _disk() if device.type == "cpu" and memory > IN_MEMORY else None
    if directory is None:
        return _fitting(Room(memory, "in memory", _where_it_is), free_memory(), samples)
    nbytes = needed.file + loaded
    # Batches of other sizes need slots of other sizes: a sparse file may be large.
    paging = partial(_on_disk, directory, 4 * nbytes)
    there = Room(nbytes, f"on disk in {directory}", paging)
    return _fitting(there, shutil.disk_usage(directory).free, samples)


def _disk() -> str | None:
    """A directory on a disk; None where all are kept in memory, or pages cannot be given back."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    try:
        return DiskStore().directory
    except AccumulationError:
        return None


@contextmanager
def _on_disk(directory: str, nbytes: int, model: nn.Module) -> Iterator[Waiting]:
    file = MappedFile(directory, nbytes)
    try:
        yield Paging(_shelf(model), file)
    finally:
        file.close()


@contextmanager
def _on_host(model: nn.Module) -> Iterator[Waiting]:
    yield Waiting(_shelf(model))


@contextmanager
def _where_it_is(model: nn.Module) -> Iterator[None]:
    yield


def _shelf(model: nn.Module) -> Shelf:
    return Shelf(HostStore(), (entry.tensor for entry in named_tensors(model)))


def _fitting(there: Room, free: int | None, samples: int | None) -> Room:
    if free is None or there.nbytes <= _SHARE * free:
        return there
    fewer = int((samples or 0) * _SHARE * free / there.nbytes)
    smaller = f"samples={fewer}, or " if fewer else "fewer samples, or "
    elsewhere = "; TMPDIR names the directory" if "disk" in there.place else ""
    raise AccumulationError(
        f'method="layerwise" keeps all batches at each norm, {there}, where {human(free)}B are '
        f'free{elsewhere}. Pass {smaller}method="merged", which keeps one batch'
    )


def free_on(device: torch.device) -> int:
    """Bytes that can still be allocated on a CUDA device."""
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free, _ = torch.cuda.mem_get_info(device)
    return free + cached


def free_memory() -> int | None:
    """Bytes of memory that can still be taken; None where that cannot be told."""
    known = [there for there in (_of_machine(), _of_container()) if there is not None]
    return min(known, default=None)


def _of_machine(table: Path = Path("/proc/meminfo")) -> int | None:
    if not table.exists():
        return None
    rows = dict(line.split(":") for line in table.read_text().splitlines())
    return int(rows["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in rows else None


_GROUPS = (  # of version 2 and of version 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def _of_container(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left of the limit of a control group, if there is one."""
    for limit, usage, cached in _GROUPS:
        most, used = root / limit, root / usage
        if most.exists() and used.exists() and most.read_text().strip().isdigit():
            table = (used.parent / "memory.stat").read_text().splitlines()
            rows = dict(line.split() for line in table)
            # Pages of files are counted as used, and given up when somebody wants them.
            taken = int(used.read_text()) - int(rows.get(cached, 0))
            return max(0, int(most.read_text()) - taken)
    return None
