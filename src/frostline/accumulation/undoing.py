"""All or nothing: after an exception a window has touched nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from frostline._names import NamedTensor, named_tensors
from frostline._state import Snapshot, has_bytes, same_bits, write_bits


class Before:
    """Models before a window: buffers as bytes, and all else but the bytes of parameters.

    Args:
        models: the roots.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self._snapshots = [Snapshot.take(model, values=False) for model in models]
        self._grad_mode = torch.is_grad_enabled()
        found = [
            entry for model in models for entry in named_tensors(model) if entry.kind != "parameter"
        ]
        self._values = [
            (entry, entry.tensor, entry.tensor.detach().clone())
            for entry in found
            if has_bytes(entry.tensor)
        ]

    def restore(self) -> None:
        """Bring it all back."""
        torch.set_grad_enabled(self._grad_mode)
        for snapshot in self._snapshots:
            snapshot.restore()
        self.restore_buffers()

    def restore_buffers(self) -> None:
        """Bring back the bytes of the buffers, which an optimizer does not see."""
        for _, tensor, value in self._values:
            write_bits(tensor, value)

    def changed(self) -> Iterator[NamedTensor]:
        """Buffers that have other bytes now."""
        for entry, tensor, value in self._values:
            if tensor.shape != value.shape or not same_bits(tensor, value):
                yield entry


@contextmanager
def all_or_nothing(*models: nn.Module) -> Iterator[Before]:
    """After an exception inside, all that a window can touch is as before."""
    before = Before(models)
    try:
        yield before
    except BaseException:
        before.restore()
        raise
