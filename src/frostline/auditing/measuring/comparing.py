"""Which tensors of a model have other bytes than before, and by how much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from frostline._names import NamedTensor
from frostline._state import has_bytes, pieces, same_bits
from frostline.auditing.measuring.sandbox import Copies

_AT_ONCE = 1 << 20  # elements whose difference is taken in double precision at one time


def changes(entries: Iterable[NamedTensor], before: Copies) -> tuple[set[int], dict[int, float]]:
    """Ids of the tensors that changed, and the largest difference of an element of each.

    A tensor has changed where it stands: if another is at its place now, that one is compared.

    Args:
        entries: the places before.
        before: copies of the bytes there, by id.

    Returns:
        ids, and for those of equal shape and finite numbers the difference.
    """
    changed: set[int] = set()
    drift: dict[int, float] = {}
    for entry in entries:
        old = before.get(id(entry.tensor))
        if old is None or not has_bytes(entry.tensor):
            continue
        now = _standing(entry)
        new = [] if now is None or not has_bytes(now) else pieces(now)
        if _are_equal(old, new):
            continue
        changed.add(id(entry.tensor))
        distance = _distance(old, new)
        if distance is not None:
            drift[id(entry.tensor)] = max(distance, drift.get(id(entry.tensor), 0.0))
    return changed, drift


def _standing(entry: NamedTensor) -> Tensor | None:
    """What stands at the place now."""
    owner, name = entry.owner, entry.attribute
    for table in (owner._parameters, owner._buffers, vars(owner)):
        found = table.get(name)
        if isinstance(found, Tensor):
            return found
    return None


def _are_equal(old: Sequence[Tensor], new: Sequence[Tensor]) -> bool:
    return len(old) == len(new) and all(map(_have_same_bytes, old, new))


def _have_same_bytes(old: Tensor, new: Tensor) -> bool:
    if (old.shape, old.dtype, old.layout) != (new.shape, new.dtype, new.layout):
        return False
    if old.is_quantized:
        return torch.equal(old, new)
    return same_bits(old, new.to(old.device))


def _distance(old: Sequence[Tensor], new: Sequence[Tensor]) -> float | None:
    if len(old) != len(new) or any(a.shape != b.shape for a, b in zip(old, new, strict=True)):
        return None
    found = [_largest(a, b.to(a.device)) for a, b in _chunks(old, new)]
    return max(found, default=0.0) if all(map(math.isfinite, found)) else None


def _largest(old: Tensor, new: Tensor) -> float:
    """The largest difference; none where both are not a number, or infinite."""
    same = (old == new) | (old.isnan() & new.isnan())
    return float((new - old).abs().masked_fill(same, 0.0).max())


def _chunks(old: Sequence[Tensor], new: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    for pair in zip(old, new, strict=True):
        flat = [_real(tensor).reshape(-1) for tensor in pair]
        for start in range(0, flat[0].numel(), _AT_ONCE):
            a, b = (each[start : start + _AT_ONCE].double() for each in flat)
            yield a, b


def _real(tensor: Tensor) -> Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg()
    plain = plain.dequantize() if plain.is_quantized else plain
    return torch.view_as_real(plain) if plain.is_complex() else plain
