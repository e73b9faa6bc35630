"""What autograd saves for backward goes to the shelf."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from frostline.errors import AccumulationError
from frostline.lockstep.shelving import Shelf, Shelved


@contextmanager
def taping(shelf: Shelf) -> Iterator[None]:
    """While it is active, saved tensors are put on ``shelf``.

    Under these hooks torch does not notice that a saved tensor is written to later, so the bytes
    are copied before the hook returns, small ones in memory. Parameters and buffers stay.

    Raises:
        AccumulationError: something inside does not work under such hooks.
    """

    def pack(tensor: Tensor) -> Shelved | Tensor:
        if shelf.takes(tensor):
            return shelf.put(tensor)
        return tensor.clone() if shelf.is_small(tensor) else tensor

    def unpack(packed: Any) -> Tensor:
        found: Tensor = packed.load() if isinstance(packed, Shelved) else packed
        return found

    try:
        with saved_tensors_hooks(pack, unpack):
            yield
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
        raise AccumulationError(
            f"{str(error).partition('. ')[0]}, by which offload= keeps tensors elsewhere; pass "
            "offload=None"
        ) from error
