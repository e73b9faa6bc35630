"""The seal: the content that a part is compared with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from frostline._results import Change
from frostline._state import same_bits
from frostline.checksums import Checksum, checksum, matches, rounded

# A part keeps private copies of its smallest tensors, so that running statistics always have
# numbers: up to this fraction of its bytes, and small parts keep all of theirs.
COPIED_FRACTION = 0.01
COPIED_AT_LEAST = 1 << 20

# What a tensor of this dtype may be rounded to and brought back from, which is a cast and no drift.
_NARROWER = {
    torch.float64: (torch.float32, torch.bfloat16, torch.float16),
    torch.float32: (torch.bfloat16, torch.float16),
}


K = TypeVar("K")


@dataclass(eq=False, repr=False)
class SealedTensor:
    """One tensor as it was: checksum, dtype, shape, checksums of its roundings, maybe a copy."""

    checksum: Checksum
    dtype: torch.dtype
    shape: tuple[int, ...]
    rounded: dict[torch.dtype, Checksum]
    copy: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes that were read."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(eq=False, repr=False)
class Seal:
    """The content of a part at one moment.

    Attributes:
        key: of the checksums; drawn anew for every seal.
        tensors: full name to what was there.
    """

    key: int
    tensors: dict[str, SealedTensor]


def take(tensors: Mapping[str, Tensor]) -> Seal:
    """Seal these tensors as they are now; reads each byte where it lives, copies only small ones.

    Raises:
        UnsupportedTensor: if the content of one cannot be read.
    """
    key = int.from_bytes(os.urandom(8), "little")
    copied = _to_copy(tensors)
    return Seal(key, {name: _seal(name, t, key, name in copied) for name, t in tensors.items()})


def _to_copy(tensors: Mapping[str, Tensor]) -> set[str]:
    # Only dense tensors are copied, and sparse ones have no `nbytes`.
    sizes = {name: t.nbytes for name, t in tensors.items() if _is_dense(t)}
    return smallest(sizes)


def smallest(sizes: Mapping[K, int]) -> set[K]:
    """The smallest of these, up to 1 % of all bytes, and 1 MiB at least."""
    budget = max(COPIED_AT_LEAST, int(COPIED_FRACTION * sum(sizes.values())))
    chosen: set[K] = set()
    for key in sorted(sizes, key=sizes.__getitem__):
        budget -= sizes[key]
        if budget < 0:
            break
        chosen.add(key)
    return chosen


def _seal(name: str, tensor: Tensor, key: int, keep: bool) -> SealedTensor:
    roundings = _NARROWER.get(tensor.dtype, ()) if _is_dense(tensor) else ()
    return SealedTensor(
        checksum(tensor, key, name),
        tensor.dtype,
        tuple(tensor.shape),
        {dtype: rounded(tensor, dtype, key, name) for dtype in roundings},
        tensor.detach().clone() if keep else None,
    )


def compare(seal: Seal, name: str, tensor: Tensor) -> Change | None:
    """How ``tensor`` differs from what was sealed under ``name``, None if it does not."""
    sealed = seal.tensors[name]
    if tuple(tensor.shape) != sealed.shape:
        cause = f"{list(sealed.shape)} -> {list(tensor.shape)}"
        return Change(name, "shape", cause=cause)
    if matches(sealed.checksum, tensor, seal.key, name):
        return None
    if _is_cast(sealed, name, tensor, seal.key):
        return Change(name, "cast", "report", cause=_cast_text(sealed.dtype, tensor.dtype))
    if tensor.dtype != sealed.dtype:
        return Change(name, "dtype", cause=f"{sealed.dtype} -> {tensor.dtype}, values differ too")
    return _value_change(sealed, name, tensor)


def _cast_text(was: torch.dtype, now: torch.dtype) -> str:
    return f"{was} -> {now}" if was != now else f"rounded, still {now}"


def _is_cast(sealed: SealedTensor, name: str, tensor: Tensor, key: int) -> bool:
    """Whether the bytes are those that a cast, or a cast there and back, leaves."""
    was, now = sealed.dtype, tensor.dtype
    if not _is_dense(tensor):
        return False
    if now in sealed.rounded:
        return matches(sealed.rounded[now], tensor, key, name)
    if now == was:
        return any(
            _survives(tensor, dtype) and _rounds_to(expected, tensor, dtype, key, name)
            for dtype, expected in sealed.rounded.items()
        )
    return _survives(tensor, was) and _rounds_to(sealed.checksum, tensor, was, key, name)


def _rounds_to(expected: Checksum, tensor: Tensor, dtype: torch.dtype, key: int, name: str) -> bool:
    # Chunk by chunk as at the seal: torch rounds NaN differently by the layout of what it is given.
    return rounded(tensor, dtype, key, name, expected.algorithm) == expected


def _survives(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a trip through ``dtype`` changes nothing."""
    tensor = tensor.detach()
    return same_bits(tensor.to(dtype).to(tensor.dtype), tensor)


def _value_change(sealed: SealedTensor, name: str, tensor: Tensor) -> Change:
    if sealed.copy is None:
        return Change(name, "value")
    old, new = sealed.copy, tensor.detach().to(sealed.copy.device)
    differ = bits_differ(old, new)
    return Change(
        name,
        "value",
        max_abs=largest_difference(old, new),
        changed_elements=int(differ.sum().item()),
        elements=new.numel(),
    )


def bits_differ(old: Tensor, new: Tensor) -> Tensor:
    """One bool an element."""
    pair = [_bytes(t).view(-1, t.element_size()) for t in (old, new)]
    return (pair[0] != pair[1]).any(1)


def _bytes(tensor: Tensor) -> Tensor:
    dense = tensor.resolve_conj().resolve_neg().contiguous()
    # Not reshape(-1): a single element may keep an odd stride, which another dtype refuses.
    return dense.as_strided((dense.numel(),), (1,)).view(torch.uint8)


def largest_difference(old: Tensor, new: Tensor) -> float | None:
    """The largest absolute difference of two elements."""
    wide = torch.complex128 if old.is_complex() else torch.float64
    return (new.to(wide) - old.to(wide)).abs().max().item() if old.numel() else None


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and type(tensor) in (
        Tensor,
        torch.nn.Parameter,
        torch.nn.Buffer,
    )
