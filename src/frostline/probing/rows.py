"""Which elements of a tensor belong to which samples, and which of them moved between two runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from frostline.probing.samples import in_first_half


@dataclass(eq=False)
class Seen:
    """A tensor as it passed in the first run.

    Attributes:
        value: a copy.
        dim: the dimension along which its samples stand; None where there is none, or none is
            known.
        first: which indices along it belong to the first half of the samples, bool; None until
            something moved that tells.
    """

    value: Tensor
    dim: int | None = None
    first: Tensor | None = None

    @cached_property
    def _tolerance(self) -> float:
        if not self.value.numel():
            return 0.0
        return noise(self.value.dtype) * float(self.value.abs().nan_to_num(0, 0, 0).amax())

    def moved_in(self, now: Tensor) -> Tensor:
        """Which elements differ from what they are in ``now`` by more than rounding.

        NaN equals NaN.
        """
        distance = (now - self.value).abs()
        moved = distance > self._tolerance
        if not bool(distance.sum().isfinite()):
            both = now.isnan() & self.value.isnan()
            moved |= distance.isnan() & (now != self.value) & ~both
        return moved

    def fits(self, other: Tensor) -> bool:
        """Whether the elements of both correspond."""
        return self.value.shape == other.shape and self.value.dtype == other.dtype

    def take_dimension(self, count: int, doubled: torch.Size) -> None:
        """Find the samples' dimension: with twice the samples its size is twice as large.

        Args:
            count: samples in the first run.
            doubled: shape of the tensor with twice as many.
        """
        own = self.value.shape
        if len(own) == len(doubled) and 0 not in own:
            grown = [d for d in range(len(own)) if doubled[d] == 2 * own[d]]
            others = [d for d in range(len(own)) if d not in grown]
            if grown and all(doubled[d] == own[d] for d in others) and own[grown[0]] % count == 0:
                self.dim = grown[0]

    def parts(self, count: int) -> int:
        """How many rows a sample has, of ``count`` samples."""
        assert self.dim is not None  # noqa: S101
        return self.value.shape[self.dim] // count

    def along(self, rows: Tensor) -> Tensor:
        """``rows`` (one for each index of the samples' dimension) in a shape that broadcasts."""
        assert self.dim is not None  # noqa: S101
        shape = [1] * self.value.dim()
        shape[self.dim] = -1
        return rows.view(shape)


@dataclass(frozen=True, eq=False)
class Moved:
    """What differs between a run with half of the samples replaced and the first run.

    Attributes:
        rows: whether any element moved by more than rounding, for each index along the samples'
            dimension.
        strays: whether some moved that belong to the half that was not replaced.
        elements: which did; bool, in the shape of the tensor. Kept for strays.
        sorted: whether that may be because rows stand in other places than before.
        effect: largest change of another sample, in root mean squares of the tensor; infinite
            where a number became none.
        kept: the tensor as it came, where it is needed.
    """

    rows: Tensor
    strays: bool = False
    elements: Tensor | None = None
    sorted: bool = False
    effect: float = 0.0
    kept: Tensor | None = None


def noise(dtype: torch.dtype) -> float:
    """What rounding may move, as a share of the largest value.

    With equal shapes torch computes a sample's numbers the same whatever the others are; but some
    code chooses shapes by content (nested tensors leave padding out), and so another order of sums.
    """
    eps = torch.finfo(dtype).eps
    return 2 * eps if eps > 1e-4 else 16 * eps


def arrangements(size: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which indices of a dimension may belong to the first half of the samples.

    A dimension that holds more than samples has them one after the other (a flattened
    [samples, length]) or in turn (a flattened [length, samples]).

    Args:
        size: of the dimension, a multiple of ``count``.
        count: samples.
        device: of the result.
    """
    halves = torch.tensor(in_first_half(count), device=device)
    return halves.repeat_interleave(size // count), halves.repeat(size // count)


def told_by(candidates: Iterable[Tensor], rows: Tensor, *, first: bool) -> Tensor | None:
    """The arrangement in which all rows that moved belong to the half that was replaced."""
    for candidate in candidates if bool(rows.any()) else ():
        own = candidate if first else ~candidate
        if not bool((rows & ~own).any()):
            return candidate
    return None


def effect(now: Tensor, before: Tensor, others: Tensor) -> float:
    """Largest change among ``others`` in root mean squares of what was before."""
    distance = (now - before).abs()[others.expand_as(before)]
    scale = float(before.abs().double().square().mean().sqrt()) or 1.0
    largest = float(distance.max())
    return largest / scale if largest == largest else float("inf")


def are_sorted(now: Tensor, before: Tensor, dim: int) -> bool:
    """Whether rows only stand in other places than before: those that were not replaced are there.

    They are one half of all rows. Looked for are up to 256, and 2 of 5 must be found.
    """
    old, new = _as_rows(before, dim), _as_rows(now, dim)
    some = old[:: -(-len(old) // 256)]
    nearest = torch.cdist(some, new, p=float("inf")).amin(1)
    found = nearest <= noise(before.dtype) * some.abs().amax()
    return 5 * int(found.sum()) >= 2 * len(some)


def _as_rows(tensor: Tensor, dim: int) -> Tensor:
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return real.movedim(dim, 0).flatten(1).double() if real.dim() > 1 else real[:, None].double()


def is_coupled(seen: Seen, count: int, one: Moved | None, other: Moved | None) -> bool:
    """Whether samples of one half moved when the other half was replaced.

    Rows moved with the wrong half; and they are known to be of the samples that they are taken
    for: each of them moves with its own half, too, and none is just in another place. Where a row
    is a sample, it is enough that one element moves with either: it depends on both.

    Args:
        seen: the tensor.
        count: samples in the batch.
        one: what moved with the first half replaced.
        other: what moved with the second half replaced.
    """
    if one is None or other is None or not (one.strays or other.strays):
        return False
    if seen.parts(count) == 1 and _share_elements(one, other):
        return True
    first = seen.first
    if first is None or one.sorted or other.sorted:
        return False
    return bool(one.rows[first].all()) and bool(other.rows[~first].all())


def _share_elements(one: Moved, other: Moved) -> bool:
    if one.elements is None or other.elements is None:
        return False
    return bool((one.elements & other.elements).any())
