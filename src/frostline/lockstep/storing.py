"""Bytes of tensors that wait, kept on disk or in the host's memory."""

from __future__ import annotations

import ctypes
import os
import tempfile
import weakref
from pathlib import Path
from typing import Protocol

import torch

from frostline.errors import AccumulationError

_RAM_BACKED = ("tmpfs", "ramfs")


class Slot(Protocol):
    """Where the bytes of one storage are; they are let go with the object."""

    nbytes: int

    def read(self, storage: torch.UntypedStorage) -> None:
        """Put them into a storage of ``nbytes``."""


class Store(Protocol):
    """A place for bytes."""

    def put(self, storage: torch.UntypedStorage) -> Slot:
        """Keep a copy of what is in there now."""


class HostStore:
    """Copies in the host's memory, for tensors that live on a device."""

    def put(self, storage: torch.UntypedStorage) -> Slot:
        """Keep a copy of what is in there now."""
        return _HostSlot(storage)


class _HostSlot:
    __slots__ = ("__weakref__", "_copy", "nbytes")

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.nbytes = storage.nbytes()
        pinned = storage.device.type == "cuda"
        self._copy = torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=pinned)
        self._copy.untyped_storage().copy_(storage)

    def read(self, storage: torch.UntypedStorage) -> None:
        storage.copy_(self._copy.untyped_storage())


class DiskStore:
    """Copies in an unlinked temporary file, so that nothing is left after a kill.

    It lies in the first directory that is no RAM disk, of ``TMPDIR`` or the system's, ``/var/tmp``
    and the working directory.

    Raises:
        AccumulationError: all of them are in memory, so that nothing would be saved.

    Example:
        >>> tensor = torch.arange(3.0)
        >>> slot = DiskStore().put(tensor.untyped_storage())
        >>> _ = tensor.zero_()
        >>> slot.read(tensor.untyped_storage())
        >>> tensor
        tensor([0., 1., 2.])
    """

    def __init__(self) -> None:
        self.directory = _directory()
        self._file = tempfile.TemporaryFile(buffering=0, dir=self.directory)  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._free: dict[int, list[int]] = {}
        self._end = 0

    def put(self, storage: torch.UntypedStorage) -> Slot:
        """Keep a copy of what is in there now.

        Raises:
            AccumulationError: the disk is full.
        """
        nbytes = storage.nbytes()
        free = self._free.get(nbytes)
        offset = free.pop() if free else self._end
        self._end = max(self._end, offset + nbytes)
        try:
            self._write(storage.cpu(), offset)
        except OSError as error:
            raise AccumulationError(
                f"{self.directory}: {error.strerror} after {offset / 1e9:.2f} GB of waiting "
                "microbatches; set TMPDIR to a directory with more room, or take a smaller window"
            ) from error
        return _DiskSlot(self, offset, nbytes)

    def _write(self, storage: torch.UntypedStorage, offset: int) -> None:
        view = _bytes(storage)
        self._file.seek(offset)
        done = 0
        while done < len(view):  # one call writes at most 2 GiB
            done += self._file.write(view[done:])

    def read(self, offset: int, storage: torch.UntypedStorage) -> None:
        """Fill a storage with the bytes from ``offset`` on."""
        host = storage if storage.device.type == "cpu" else torch.UntypedStorage(storage.nbytes())
        view = _bytes(host)
        self._file.seek(offset)
        done = 0
        while done < len(view):
            done += self._file.readinto(view[done:])
        if host is not storage:
            storage.copy_(host)

    def release(self, offset: int, nbytes: int) -> None:
        """These bytes are not needed any more; the next of this size take their place."""
        self._free.setdefault(nbytes, []).append(offset)


class _DiskSlot:
    __slots__ = ("__weakref__", "_offset", "_store", "nbytes")

    def __init__(self, store: DiskStore, offset: int, nbytes: int) -> None:
        self._store, self._offset, self.nbytes = store, offset, nbytes

    def read(self, storage: torch.UntypedStorage) -> None:
        self._store.read(self._offset, storage)

    def __del__(self) -> None:
        self._store.release(self._offset, self.nbytes)


def _bytes(storage: torch.UntypedStorage) -> memoryview:
    whole = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    return memoryview(whole).cast("B")


def _directory() -> str:
    candidates = (tempfile.gettempdir(), "/var/tmp", os.getcwd())
    for directory in candidates:
        if os.access(directory, os.W_OK) and _file_system(directory) not in _RAM_BACKED:
            return directory
    raise AccumulationError(
        f'offload="disk": {", ".join(candidates)} are kept in memory or cannot be written to, so '
        "no memory would be saved; set TMPDIR to a directory on a disk"
    )


def _file_system(directory: str) -> str | None:
    """The type of the file system of a directory; None where it cannot be told."""
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():
        return None
    path = Path(directory).resolve()
    found: tuple[int, str | None] = (-1, None)
    for line in mounts.read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        place = Path(fields.split()[4].replace("\\040", " "))
        if path.is_relative_to(place) and len(place.parts) >= found[0]:
            found = len(place.parts), rest.split()[0]
    return found[1]
