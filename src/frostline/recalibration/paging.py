"""What suspended runs hold lies in a mapped file, whose pages are given back while a run waits.

A page comes back by itself when it is touched, by whomever: no reader has to know of it, and what
is not touched is not read. The memory of a tensor is copied once; the tensor stays the same object.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import tempfile
import weakref
from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor

from frostline.errors import AccumulationError
from frostline.lockstep.holdings import Holdings
from frostline.lockstep.shelving import Shelf
from frostline.lockstep.waiting import Waiting


class MappedFile:
    """An unlinked temporary file, mapped as a whole; it is sparse, so its size costs nothing.

    Args:
        directory: where it lies.
        nbytes: how much fits in.
    """

    def __init__(self, directory: str, nbytes: int) -> None:
        self._file = tempfile.TemporaryFile(buffering=0, dir=directory)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._directory, self._size, self._end = directory, whole_pages(nbytes), 0
        os.ftruncate(self._file.fileno(), self._size)
        self._map = mmap.mmap(self._file.fileno(), self._size)
        self._free: dict[int, list[int]] = {}  # starts by length
        self._taken: dict[int, tuple[int, int]] = {}  # start and length by the storage in it

    def put(self, storage: torch.UntypedStorage) -> torch.UntypedStorage | None:
        """A storage in the file with the same bytes; None if that is full.

        Raises:
            AccumulationError: the disk is full.
        """
        length = whole_pages(storage.nbytes())
        free = self._free.get(length)
        start = free.pop() if free else self._end
        if start + length > self._size:
            return None
        self._end = max(self._end, start + length)
        self._write(storage, start)
        view = memoryview(self._map)[start : start + storage.nbytes()]
        mapped = torch.frombuffer(view, dtype=torch.uint8).untyped_storage()
        self._taken[mapped._cdata] = start, length
        weakref.finalize(view, self._release, mapped._cdata)  # with the last tensor in there
        return mapped

    def _write(self, storage: torch.UntypedStorage, start: int) -> None:
        # Not through the map: a full disk would be a bus error there.
        whole = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
        rest = memoryview(whole).cast("B")
        try:
            while rest:  # one call writes at most 2 GiB
                done = os.pwrite(self._file.fileno(), rest, start)
                rest, start = rest[done:], start + done
        except OSError as error:
            raise AccumulationError(
                f"{self._directory}: {error.strerror} after {start / 1e9:.2f} GB of waiting "
                "batches; set TMPDIR to a directory with more room, or pass fewer samples"
            ) from error

    def close(self) -> None:
        """Let the file go, or leave that to the last tensor in there."""
        self._file.close()
        with suppress(BufferError):
            self._map.close()

    def _release(self, address: int) -> None:
        start, length = self._taken.pop(address)
        if self._file.closed:
            return
        self._map.madvise(mmap.MADV_DONTNEED, start, length)
        self._free.setdefault(length, []).append(start)

    def give_back(self, storage: torch.UntypedStorage) -> bool:
        """Free the memory of a storage in the file, whose bytes stay there; False if it is none."""
        pages = self._taken.get(storage._cdata)
        if pages is not None:
            self._map.madvise(mmap.MADV_DONTNEED, *pages)
        return pages is not None


class Paging(Waiting):
    """Moves what runs hold into a file.

    Args:
        shelf: says which tensors are to be moved.
        file: takes them.
    """

    def __init__(self, shelf: Shelf, file: MappedFile) -> None:
        super().__init__(shelf)
        self._file = file

    def suspend(
        self,
        run: int,
        holdings: Holdings,
        cut: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        """Give back the memory of a run that waits now."""
        alike: dict[int, list[Tensor]] = {}
        for tensor in holdings.held(run):
            if self.shelf.takes(tensor):
                alike.setdefault(tensor.untyped_storage()._cdata, []).append(tensor)
        for tensors in alike.values():
            if not self._file.give_back(tensors[0].untyped_storage()):
                self._move(tensors)

    def _move(self, tensors: list[Tensor]) -> None:
        """Tensors that share a storage; they share one afterwards, too."""
        storage = self._file.put(tensors[0].untyped_storage())
        if storage is not None:
            for tensor in tensors:
                there = torch.empty(0, dtype=tensor.dtype)
                offset = int(tensor.storage_offset())
                tensor.data = there.set_(storage, offset, tensor.shape, tensor.stride())

    def before(self, function: object, arguments: object) -> None:
        """Pages come back by themselves."""

    def resume(self, run: int) -> None:
        """Pages come back by themselves."""


def whole_pages(nbytes: int) -> int:
    """``nbytes``, rounded up to pages of this machine."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
