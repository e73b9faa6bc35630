"""How much memory tensors take, each byte once: tied tensors, views of one storage, wrappers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from frostline._state import pieces

# Compressed layouts keep their content in three plain tensors.
_COMPRESSED = {
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}

Steps = tuple[tuple[int, int], ...]


class Size(NamedTuple):
    """A number of elements and the bytes that they take."""

    elements: int
    bytes: int

    def less(self, part: Size) -> Size:
        """What is in this one and not in ``part``, which is within it."""
        return Size(self.elements - part.elements, self.bytes - part.bytes)


class Window(NamedTuple):
    """The bytes that a tensor looks at.

    Attributes:
        space: where its addresses count: a device, or a storage without memory.
        start: address of the first byte.
        end: address after the last byte.
        steps: size and stride of each dimension, in elements; empty where there are no gaps.
        itemsize: bytes of an element.
        size: what it amounts to, alone.
    """

    space: str
    start: int
    end: int
    steps: Steps
    itemsize: int
    size: Size


class Footprint:
    """Tensors, and the bytes that each looks at; sets of them can be measured.

    Example:
        >>> flat = torch.zeros(10)
        >>> found = Footprint([flat[:6], flat[4:], flat[:6]])
        >>> found.size(found.windows)
        Size(elements=10, bytes=40)
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.of: dict[int, tuple[Window, ...]] = {}
        for tensor in tensors:
            if id(tensor) not in self.of:
                self.of[id(tensor)] = tuple(_windows(tensor))
        self.windows = {window for windows in self.of.values() for window in windows}
        self._cluster = _clusters(self.windows)

    def size(self, windows: Collection[Window]) -> Size:
        """The size of different windows together, shared bytes once."""
        shared: dict[int, list[Window]] = {}
        for window in windows if self._cluster else ():
            if window in self._cluster:
                shared.setdefault(self._cluster[window], []).append(window)
        alone = [w.size for w in windows if w not in self._cluster]
        sizes = [*alone, *map(_together, shared.values())]
        return Size(sum(size.elements for size in sizes), sum(size.bytes for size in sizes))

    def share(self, some: Iterable[Window], others: Collection[Window]) -> bool:
        """Whether some byte is in both."""
        for window in some:
            if window in others:
                return True
            cluster = self._cluster.get(window)
            near = [w for w in others if self._cluster.get(w) == cluster] if cluster else []
            if any(_meet(window, other) for other in near):
                return True
        return False


def nbytes(tensors: Iterable[Tensor]) -> int:
    """The bytes of these tensors, shared ones once."""
    found = Footprint(tensors)
    return found.size(found.windows).bytes


def _windows(tensor: Tensor) -> Iterator[Window]:
    inner = list(_plain(tensor))
    # A wrapper counts for the elements that it shows, whatever it keeps for them.
    shown = tensor.numel() if tensor.layout is torch.strided else inner[-1].numel()
    for i, piece in enumerate(inner, 1):
        if piece.numel() and len(inner) == 1 and piece.shape == tensor.shape:
            yield _window(piece, None)
        elif piece.numel():
            yield _window(piece, shown if i == len(inner) else 0)


def _plain(tensor: Tensor) -> Sequence[Tensor]:
    if tensor.layout in _COMPRESSED:
        return [getattr(tensor, name)() for name in _COMPRESSED[tensor.layout]]
    return pieces(tensor)


def _window(tensor: Tensor, counts_for: int | None) -> Window:
    itemsize, elements = tensor.element_size(), tensor.numel()
    try:
        space, start, steps = *_place(tensor), _steps(tensor)
    except (RuntimeError, NotImplementedError):  # a layout that shows no memory
        space, start, steps = f"opaque {id(tensor)}", 0, ((elements, 1),)
    reach = 1 + sum((size - 1) * stride for size, stride in steps)
    end = start + reach * itemsize
    dense = _is_dense(steps)
    own = end - start if dense else _marked([(start, steps, itemsize)], start, end)
    size = Size(own // itemsize if counts_for is None else counts_for, own)
    return Window(space, start, end, () if dense else steps, itemsize, size)


def _place(tensor: Tensor) -> tuple[str, int]:
    storage = tensor.untyped_storage()
    if storage.device.type == "meta":  # that of a fake tensor, which names another device itself
        return f"meta {storage._cdata}", int(tensor.storage_offset()) * tensor.element_size()
    return str(tensor.device), tensor.data_ptr()


def _steps(tensor: Tensor) -> Steps:
    """Size and stride of the dimensions that move, the shortest stride first."""
    moving = [(n, s) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1 and s]
    return tuple(sorted(moving, key=lambda step: step[1]))


def _is_dense(steps: Steps) -> bool:
    length = 1
    for size, stride in steps:
        if stride != length:
            return False
        length *= size
    return True


def _clusters(windows: Iterable[Window]) -> dict[Window, int]:
    """The windows whose ends reach into others, each with the number of its cluster."""
    found: dict[Window, int] = {}
    ordered = sorted(windows, key=lambda w: w[:3])
    for _, group in groupby(ordered, key=lambda w: w.space):
        members: list[Window] = []
        reach = -1
        for window in group:
            if window.start >= reach:
                _note(members, found)
                members = []
            members.append(window)
            reach = max(reach, window.end)
        _note(members, found)
    return found


def _note(members: list[Window], found: dict[Window, int]) -> None:
    if len(members) > 1:
        found |= dict.fromkeys(members, len(found) + 1)


def _together(windows: list[Window]) -> Size:
    if len(windows) == 1:
        return windows[0].size
    union = _union(windows)
    return Size(union // windows[0].itemsize, union)


def _meet(a: Window, b: Window) -> bool:
    near = a.start < b.end and b.start < a.end
    return near and _union([a, b]) < a.size.bytes + b.size.bytes


def _union(windows: list[Window]) -> int:
    """How many bytes are in one of these."""
    start, end = min(w.start for w in windows), max(w.end for w in windows)
    if any(window.steps for window in windows):
        return _marked([(w.start, w.steps or _row(w), w.itemsize) for w in windows], start, end)
    total, reach = 0, start
    for window in sorted(windows, key=lambda w: w.start):
        total += max(0, window.end - max(window.start, reach))
        reach = max(reach, window.end)
    return total


def _row(window: Window) -> Steps:
    return (((window.end - window.start) // window.itemsize, 1),)


def _marked(windows: Iterable[tuple[int, Steps, int]], start: int, end: int) -> int:
    """How many bytes from ``start`` to ``end`` these look at, found by marking each."""
    marks = torch.zeros(end - start, dtype=torch.bool)
    for first, steps, itemsize in windows:
        sizes = (*(size for size, _ in steps), itemsize)
        strides = (*(stride * itemsize for _, stride in steps), 1)
        marks.as_strided(sizes, strides, first - start).fill_(True)
    return int(marks.sum())
