"""The memory of a run, put aside while it waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frostline._batches import tensors_in
from frostline.lockstep.holdings import Holdings
from frostline.lockstep.shelving import Shelf, Shelved, is_plain

# These give the bytes away to something that is not seen.
_EXPOSING = {
    Tensor.numpy,
    Tensor.__array__,
    Tensor.data_ptr,
    Tensor.untyped_storage,
    Tensor.storage,
    Tensor.__dlpack__,
    Tensor.share_memory_,
}


@dataclass(frozen=True, eq=False, slots=True)
class _Away:
    """A storage whose bytes are on the shelf."""

    storage: torch.UntypedStorage
    shelved: Shelved
    run: int

    def bring(self) -> None:
        self.storage.resize_(self.shelved.slot.nbytes)
        self.shelved.slot.read(self.storage)


class Waiting:
    """Puts the memory of runs aside, and brings it back.

    Args:
        shelf: where the bytes go while a run waits.
    """

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._away: dict[int | None, _Away] = {}

    def before(self, function: Any, arguments: Any) -> None:
        """A run is about to call a function of torch.

        What another run has left there and this one shares comes back, for good; so does what
        the function makes known to somebody who is not seen.
        """
        if self._away:
            for tensor in tensors_in(arguments):
                key = tensor.untyped_storage()._cdata if is_plain(tensor) else None
                if key in self._away:
                    self._away.pop(key).bring()
                    self.shelf.stay(tensor)
        if function in _EXPOSING:
            for tensor in tensors_in(arguments):
                self.shelf.stay(tensor)

    def suspend(
        self,
        run: int,
        holdings: Holdings,
        cut: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        """Put aside the memory of a run that waits now.

        Args:
            run: it is suspended.
            holdings: know what it holds.
            cut: is given the tensors first, when nothing of ours refers to them weakly.
        """
        found = holdings.let_go(run)
        if cut is not None:
            cut([tensor for tensor, _ in found])
        for tensor, depends in found:
            # What depends on no batch may be everybody's, and used where that is not seen.
            if (depends or tensor.requires_grad) and self.shelf.takes(tensor):
                self._put_away(tensor, run)
        holdings.take_up(run, found)

    def _put_away(self, tensor: Tensor, run: int) -> None:
        storage = tensor.untyped_storage()
        if storage.resizable():
            self._away[storage._cdata] = _Away(storage, self.shelf.put(tensor), run)
            storage.resize_(0)

    def resume(self, run: int) -> None:
        """Bring back the memory of a run."""
        for key in [key for key, away in self._away.items() if away.run == run]:
            self._away.pop(key).bring()
