"""Tensors on a store: each storage once, as long as it has not been written to."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from frostline.lockstep.storing import Slot, Store
from frostline.lockstep.trimming import Trimmer

# What is smaller is not worth a file operation.
SMALL = 4096


@dataclass(frozen=True, eq=False, slots=True)
class Shelved:
    """A tensor whose bytes are on a store.

    Attributes:
        slot: where the bytes of its whole storage are.
    """

    slot: Slot
    trimmer: Trimmer
    device: torch.device
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    def load(self) -> Tensor:
        """A new tensor with these bytes, strides as they were."""
        self.trimmer.freed(self.slot.nbytes)  # what was loaded before, about
        storage = torch.UntypedStorage(self.slot.nbytes, device=self.device)
        self.slot.read(storage)
        empty = torch.empty(0, dtype=self.dtype, device=self.device)
        return empty.set_(storage, self.offset, self.shape, self.stride)


@dataclass(frozen=True, eq=False, slots=True)
class _Entry:
    storage: StorageWeakRef  # as long as it lives, its address is not given to another
    version: int
    slot: weakref.ref[Slot]


class Shelf:
    """Puts tensors on a store.

    Args:
        store: where the bytes go.
        resident: tensors whose storages stay where they are (parameters, buffers, the batch).
    """

    def __init__(self, store: Store, resident: Iterable[Tensor]) -> None:
        self._store, self._trimmer = store, Trimmer()
        self._entries: dict[int, _Entry] = {}
        self._limit = 1024
        self._stay: dict[int, StorageWeakRef] = {}
        for tensor in resident:
            self.stay(tensor)

    def stay(self, tensor: Tensor) -> None:
        """Never move the storage of this tensor."""
        if is_plain(tensor):
            storage = tensor.untyped_storage()
            self._stay[storage._cdata] = StorageWeakRef(storage)

    def takes(self, tensor: Tensor) -> bool:
        """Whether this tensor is one to put there."""
        return self._moves(tensor) and not _is_small(tensor)

    def is_small(self, tensor: Tensor) -> bool:
        """Whether it would be one if it were larger."""
        return self._moves(tensor) and _is_small(tensor)

    def _moves(self, tensor: Tensor) -> bool:
        return is_plain(tensor) and tensor.untyped_storage()._cdata not in self._stay

    def put(self, tensor: Tensor) -> Shelved:
        """The tensor's bytes as they are now; written only if they are not there already."""
        storage, version = tensor.untyped_storage(), tensor._version
        entry = self._entries.get(storage._cdata)
        slot = None if entry is None or entry.version != version else entry.slot()
        if slot is None:
            slot = self._store.put(storage)
            self._trimmer.freed(slot.nbytes)
            self._enter(storage, version, slot)
        return Shelved(
            slot, self._trimmer, tensor.device, tensor.dtype, tensor.shape, tensor.stride(),
            int(tensor.storage_offset()),
        )  # fmt: skip

    def _enter(self, storage: torch.UntypedStorage, version: int, slot: Slot) -> None:
        if len(self._entries) > self._limit:
            alive = {k: e for k, e in self._entries.items() if not e.storage.expired()}
            self._entries, self._limit = alive, 2 * len(alive) + 1024
        self._entries[storage._cdata] = _Entry(StorageWeakRef(storage), version, weakref.ref(slot))


def _is_small(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() < SMALL


def is_plain(tensor: Tensor) -> bool:
    """Whether its bytes are those of one storage that is in memory."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter, torch.nn.Buffer)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not tensor.is_quantized
    )
