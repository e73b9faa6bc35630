"""Ways to the gradients of a window: four that torch has, and ours.

Each adds to ``.grad``, updates the running statistics and returns the loss.
"""

from __future__ import annotations

import os
import sys
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

import frostline as fl

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench._accumulate_models import MB, Batch, Subject, loss_of

MICROBATCH = 4


class Window(NamedTuple):
    """A model and the batch of a window, as one and in views of four samples."""

    model: nn.Module
    batch: Batch

    @property
    def microbatches(self) -> list[Batch]:
        return list(zip(*(part.split(MICROBATCH) for part in self.batch), strict=True))


Run = Callable[[Window], Tensor]


# --- what torch has ----------------------------------------------------------------------------


def plain(window: Window) -> Tensor:
    """Gradient accumulation as everyone writes it: not the big batch's gradients."""
    total = torch.zeros(())
    for part in window.microbatches:
        loss = loss_of(window.model, part) * (len(part[0]) / len(window.batch[0]))
        loss.backward()
        total += loss.detach()
    return total


def big_batch(window: Window) -> Tensor:
    loss = loss_of(window.model, window.batch)
    loss.backward()
    return loss.detach()


def checkpointed(window: Window) -> Tensor:
    """The big batch with `torch.utils.checkpoint` around each block, not reentrant.

    Running statistics are updated twice, which is torch's own way.
    """
    window.model.set_grad_checkpointing()
    return big_batch(window)


def under_hooks(window: Window) -> Tensor:
    """The big batch, what it saves for backward on disk: few lines, exact, and hard to beat."""
    with DiskTape(window):
        loss = loss_of(window.model, window.batch)
    loss.backward()
    return loss.detach()


class DiskTape(saved_tensors_hooks):
    """Saved tensors go to a file that has no name, each storage once; what lives anyway stays.

    A storage is written before ``pack`` returns, and again if somebody wrote to it since, because
    under hooks torch's own check of that is gone.
    """

    def __init__(self, window: Window) -> None:
        super().__init__(self._pack, self._unpack)
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        weakref.finalize(self, self._file.close)  # the graph's nodes hold the hooks, hence this
        self._end = 0
        self._written: dict[tuple[StorageWeakRef, int], int] = {}
        alive = (*window.model.parameters(), *window.model.buffers(), *window.batch)
        self._stays = {StorageWeakRef(tensor.untyped_storage()) for tensor in alive}

    def _pack(self, tensor: Tensor) -> Tensor | _Place:
        storage = tensor.untyped_storage()
        key = StorageWeakRef(storage), tensor._version
        if key[0] in self._stays or storage.nbytes() < 4096:
            return tensor
        if key not in self._written:
            self._written[key] = self._end
            content = memoryview(torch.empty(0, dtype=torch.uint8).set_(storage).numpy())
            while content:
                written = self._file.write(content)
                self._end, content = self._end + written, content[written:]
        view = tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
        return _Place(self._written[key], storage.nbytes(), *view)

    def _unpack(self, packed: Tensor | _Place) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        content = torch.empty(packed.nbytes, dtype=torch.uint8)
        rest, position = memoryview(content.numpy()), packed.position
        while rest:
            read = os.preadv(self._file.fileno(), [rest], position)
            rest, position = rest[read:], position + read
        empty = torch.empty(0, dtype=packed.dtype)
        return empty.set_(content.untyped_storage(), packed.offset, packed.shape, packed.stride)


class _Place(NamedTuple):
    position: int
    nbytes: int
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


# --- ours --------------------------------------------------------------------------------------


def exact(offload: str | None, memory: int | None = None) -> Run:
    def run(window: Window) -> Tensor:
        return fl.accumulate(
            window.model,
            loss_of,
            window.microbatches,
            batchnorm="exact",
            offload=offload,
            memory=memory,
        )

    return run


BASELINES: dict[str, Run] = {
    "plain": plain,
    "big batch": big_batch,
    "big + checkpoint": checkpointed,
    "big + hooks": under_hooks,
}
OURS: dict[str, Run] = {"tape kept": exact(None), "windowed": exact("disk")}


def ways(subject: Subject) -> dict[str, Run]:
    """All that can be run here; of ``offload="auto"`` one way for each limit."""
    if not hasattr(fl, "accumulate"):
        return BASELINES
    auto = {f"auto, {limit // MB} MB": exact("auto", limit) for limit in subject.limits}
    return BASELINES | OURS | auto
