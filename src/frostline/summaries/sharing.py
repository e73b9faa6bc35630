"""Pairs of tensors that are different objects and have bytes in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from frostline._names import NamedTensor
from frostline.summaries.footprint import Footprint

Pair = tuple[NamedTensor, NamedTensor]
# Where addresses count, address of the first byte and after the last, side (0 is left), whose.
_Span = tuple[str, int, int, int, NamedTensor]


def sharing(left: Sequence[NamedTensor], right: Sequence[NamedTensor]) -> list[Pair]:
    """Pairs of one of ``left`` and one of ``right``, in their order; cost n log n.

    Example:
        >>> flat, owner = torch.zeros(8), nn.Module()
        >>> a, b, c = (
        ...     NamedTensor(name, view, "parameter", True, owner, name)
        ...     for name, view in {"a": flat[:5], "b": flat[4:], "c": flat[5:]}.items()
        ... )
        >>> [(x.name, y.name) for x, y in sharing([a], [b, c])]
        [('a', 'b')]
    """
    if not left or not right:
        return []
    left, right = _near(left, right)
    place = {id(entry): i for i, entry in enumerate((*left, *right))}
    pairs = _by_memory(left, right)
    return sorted(pairs, key=lambda pair: (place[id(pair[0])], place[id(pair[1])]))


def _by_memory(left: Sequence[NamedTensor], right: Sequence[NamedTensor]) -> Iterator[Pair]:
    """The pairs in the order of their addresses."""
    footprint = Footprint(entry.tensor for entry in (*left, *right))
    reaching: list[_Span] = []
    for here in sorted(_spans(footprint, left, right), key=_by_address):
        reaching = [span for span in reaching if span[0] == here[0] and span[2] > here[1]]
        for other in reaching:
            pair = (other[4], here[4]) if other[3] == 0 else (here[4], other[4])
            if other[3] != here[3] and _share(footprint, *pair):
                yield pair
        reaching.append(here)


def _spans(
    footprint: Footprint, left: Sequence[NamedTensor], right: Sequence[NamedTensor]
) -> Iterator[_Span]:
    for side, entries in enumerate((left, right)):
        for entry in entries:
            for window in footprint.of[id(entry.tensor)]:
                yield window.space, window.start, window.end, side, entry


def _by_address(span: _Span) -> tuple[str, int, int, int]:
    return span[:4]


def _share(footprint: Footprint, a: NamedTensor, b: NamedTensor) -> bool:
    others = set(footprint.of[id(b.tensor)])
    return a.tensor is not b.tensor and footprint.share(footprint.of[id(a.tensor)], others)


def _near(
    left: Sequence[NamedTensor], right: Sequence[NamedTensor]
) -> tuple[list[NamedTensor], list[NamedTensor]]:
    """Those whose addresses reach into ones of the other side.

    Most models share nothing, and to look at layouts closely takes ten times as long.
    """
    entries = enumerate((*left, *right))
    spans = sorted((*span, i) for i, entry in entries for span in _reach(entry.tensor))
    found: set[int] = set()
    members: list[int] = []
    end = -1
    for start, stop, i in spans:
        if start >= end:
            found |= _on_both_sides(members, len(left))
            members = []
        end = max(end, stop)
        members.append(i)
    found |= _on_both_sides(members, len(left))
    near = [e for i, e in enumerate(left) if i in found]
    return near, [e for i, e in enumerate(right, len(left)) if i in found]


def _on_both_sides(members: list[int], left: int) -> set[int]:
    return set(members) if min(members, default=left) < left <= max(members, default=0) else set()


def _reach(tensor: Tensor) -> list[tuple[int, int]]:
    """Address of the first byte and after the last, of each tensor that this one is made of."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout is not torch.strided:
        return [(window.start, window.end) for window in Footprint([tensor]).windows]
    if tensor.is_meta:
        storage = tensor.untyped_storage()._cdata
        return [(storage, storage + 1)]
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return [(start, start + tensor.nbytes)]
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return [(start, start + (reach + 1) * tensor.element_size())]
