"""Which tensors of a model a write meets, by the memory that they look at, and what became of them.

Tied tensors, views and parts of flat storages share memory; the run without memory keeps that.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from frostline.auditing.predicting.effects import Effect
from frostline.auditing.predicting.values import storage_of

_FINE = 1 << 20  # bytes of two interleaved windows that are compared one by one


class _Place(NamedTuple):
    """A tensor of the model: its identity, and a stand-in that looks where it looks."""

    key: int
    stand_in: Tensor


@dataclass(eq=False, repr=False)
class Ledger:
    """What became of each tensor, by id.

    Attributes:
        effects: the effect that decided it; none where nothing was written.
        writers: the last writer that may have changed it, in words.
        writes: how many writes met it.
    """

    effects: dict[int, Effect] = field(default_factory=dict)
    writers: dict[int, str] = field(default_factory=dict)
    writes: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    _at: dict[int, list[_Place]] = field(default_factory=lambda: defaultdict(list))

    def add(self, tensor: Tensor, stand_in: Tensor) -> None:
        """Watch ``tensor``, which in the run is ``stand_in``."""
        self._at[storage_of(stand_in)].append(_Place(id(tensor), stand_in))

    def write(self, target: Tensor, effect: Effect, writer: str) -> None:
        """Note a write for every tensor that looks at a byte of ``target``."""
        for place in self._at.get(storage_of(target), ()):
            if meet(place.stand_in, target):
                self.note(place.key, effect, writer)

    def note(self, key: int, effect: Effect, writer: str) -> None:
        """Note what happened to one tensor: the last write that counts decides."""
        self.writes[key] += 1
        before = self.effects.get(key)
        keeps = effect.kind == "tiny" and before is not None and before.kind == "sure"
        if effect.kind != "none" and not keeps:
            self.effects[key] = effect
            self.writers[key] = writer


def meet(a: Tensor, b: Tensor) -> bool:
    """Whether two windows on one memory share a byte; interleaved ones are compared one by one."""
    (a_start, a_end), (b_start, b_end) = _span(a), _span(b)
    if a_start >= b_end or b_start >= a_end:
        return False
    if (_is_dense(a) and _is_dense(b)) or max(a_end, b_end) > _FINE:
        return True
    with _disable_current_modes():
        marks = torch.zeros(2, max(a_end, b_end), dtype=torch.bool)
        for row, tensor in zip(marks, (a, b), strict=True):
            size = tensor.element_size()
            shape, strides = [*tensor.shape, size], [*(n * size for n in tensor.stride()), 1]
            first = row.storage_offset() + tensor.storage_offset() * size
            row.as_strided(shape, strides, first).fill_(True)
        return bool(marks.all(dim=0).any())


def _span(tensor: Tensor) -> tuple[int, int]:
    if not tensor.numel():
        return 0, 0
    size, first = tensor.element_size(), int(tensor.storage_offset())
    reach = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return first * size, (first + reach + 1) * size


def _is_dense(tensor: Tensor) -> bool:
    start, end = _span(tensor)
    return end - start == tensor.numel() * tensor.element_size()
