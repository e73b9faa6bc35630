"""Batches: the tensors in one, its samples, and one in pieces along its first dimension."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from frostline.errors import BatchError


def samples(batch: Any) -> int:
    """How many samples a batch holds: the leading dimension that its tensors share.

    Raises:
        BatchError: there is no tensor in it, or their leading dimensions differ.

    Example:
        >>> import torch
        >>> samples({"images": torch.zeros(6, 3), "labels": torch.zeros(6)})
        6
    """
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors_in(batch)}
    if len(sizes) != 1 or None in sizes:
        shown = ", ".join(str(list(tensor.shape)) for tensor in tensors_in(batch)) or "no tensor"
        raise BatchError(
            f"expected tensors that share their first dimension, the samples; got {shown}"
        )
    return int(sizes.pop() or 0)


def pieces(batch: Any, count: int) -> list[Any]:
    """The batch in ``count`` pieces of nearly equal size, the larger first; views, not copies.

    Raises:
        BatchError: there are fewer samples than pieces, or no samples can be told.

    Example:
        >>> import torch
        >>> [p.shape[0] for p in pieces(torch.zeros(7, 2), 3)]
        [3, 2, 2]
    """
    total = samples(batch)
    if total < count:
        raise BatchError(
            f"the batch holds {total} samples; expected {count} or more, one for each microbatch"
        )
    small, larger = divmod(total, count)
    edges = [0]
    for i in range(count):
        edges.append(edges[-1] + small + (i < larger))
    return [_cut(batch, a, b) for a, b in pairwise(edges)]


def _cut(batch: Any, start: int, end: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[start:end]
    if isinstance(batch, Mapping):
        return {key: _cut(value, start, end) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_cut(value, start, end) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_cut(value, start, end) for value in batch)
    return batch


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested mappings, sequences and sets.

    Example:
        >>> import torch
        >>> [t.item() for t in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]})]
        [1, 2]
    """
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, tuple | list | set):
        for inner in value:
            yield from tensors_in(inner)
