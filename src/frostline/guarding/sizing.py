"""How large a change is: only where old values are kept, and then exactly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from frostline.freezing.sealing import bits_differ, largest_difference
from frostline.guarding import local
from frostline.guarding.reference import Reference, aligned


@dataclass(frozen=True)
class Size:
    """What can be counted; None where no old value is kept.

    Attributes:
        elements: how many elements the tensor has.
        changed: how many of them differ.
        max_abs: the largest absolute difference; None too where a value is not a number.
    """

    elements: int | None = None
    changed: int | None = None
    max_abs: float | None = None


def size(reference: Reference, tensor: Tensor | None) -> Size:
    """Compare ``tensor`` with what was kept of it."""
    if tensor is None:
        return Size()
    old, new = reference.old.copy, local.of(tensor).detach()
    if old is None or new.is_meta or not _are_alike(old, new):
        return Size(tensor.numel())
    if not new.numel():
        return Size(0, 0)
    # A subclass that only decorates has no say in how its numbers are compared.
    with torch._C.DisableTorchFunctionSubclass():
        old, new = _flat(old), _flat(new.to(old.device))
        differ = bits_differ(old, new)
        largest = _largest(old, new)
    # A NaN or an infinity has no distance that could be told.
    finite = largest is not None and largest == largest and largest != float("inf")
    return Size(new.numel(), int(differ.sum().item()), largest if finite else None)


def _are_alike(old: Tensor, new: Tensor) -> bool:
    if hasattr(type(old), "__tensor_flatten__"):
        return False  # its numbers are not those of its bytes
    return old.shape == new.shape and old.dtype == new.dtype and type(old) is type(new)


def _flat(tensor: Tensor) -> Tensor:
    dense = aligned(tensor).resolve_conj().resolve_neg()
    if dense.element_size() == 1:  # the sub-byte types have no copy kernel of their own
        dense = dense.view(torch.uint8).contiguous().view(tensor.dtype)
    # Not view(-1): a single element may keep an odd stride, which a view of other type refuses.
    return dense.contiguous().as_strided((dense.numel(),), (1,))


def _largest(old: Tensor, new: Tensor) -> float | None:
    try:
        return largest_difference(old, new)
    except NotImplementedError:  # the sub-byte types are no numbers to torch
        return None
