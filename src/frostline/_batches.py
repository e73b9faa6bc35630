"""Batches: the tensors in one, its samples, and one in pieces along its first dimension."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from itertools import pairwise
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from frostline.errors import BatchError

_SHOWN = 6  # tensors in a message
_PLAIN = frozenset({int, float, bool, str, torch.dtype, torch.device, torch.Size})


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
        raise BatchError(
            "expected tensors that share their first dimension, the samples; got "
            + shapes_in(batch)
        )
    return int(sizes.pop() or 0)


def shapes_in(batch: Any) -> str:
    """The shape of every tensor by its place, for messages.

    Example:
        >>> import torch
        >>> shapes_in({"x": torch.zeros(6, 3), "sizes": [torch.zeros(4)]})
        "batch['x'] [6, 3], batch['sizes'][0] [4]"
    """
    shown = [
        "batch" + "".join(f"[{key!r}]" for key in path) + f" {list(tensor.shape)}"
        for path, tensor in _placed(batch, ())
    ]
    more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more or f"no tensor in a {type(batch).__name__}"


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
    return _cut_at(batch, edges)


def pieces_of(batch: Any, size: int) -> list[Any]:
    """The batch in pieces of ``size`` samples, the last one maybe shorter; views, not copies.

    Raises:
        BatchError: there is no sample, or none can be told.

    Example:
        >>> import torch
        >>> [p.shape[0] for p in pieces_of(torch.zeros(7, 2), 3)]
        [3, 3, 1]
    """
    total = samples(batch)
    if not total:
        raise BatchError(f"the batch holds no sample: {shapes_in(batch)}")
    return _cut_at(batch, [*range(0, total, size), total])


def _cut_at(batch: Any, edges: list[int]) -> list[Any]:
    return [_cut(batch, start, end, edges[-1]) for start, end in pairwise(edges)]


def _cut(batch: Any, start: int, end: int, total: int) -> Any:
    if isinstance(batch, Tensor) or _is_per_sample(batch, total):
        return batch[start:end]
    if isinstance(batch, Mapping):
        return _with_values(batch, {k: _cut(v, start, end, total) for k, v in batch.items()})
    if isinstance(batch, tuple | list | set):
        inner = (_cut(value, start, end, total) for value in batch)
        is_named = isinstance(batch, tuple) and hasattr(batch, "_fields")
        return type(batch)(*inner) if is_named else type(batch)(inner)
    return batch


def joined(parts: Sequence[Any]) -> Any:
    """One batch of several in the same form, along the samples; tensors in new memory.

    Raises:
        BatchError: they do not fit together.

    Example:
        >>> import torch
        >>> a, b = {"x": torch.zeros(1, 2), "id": ["a"]}, {"x": torch.ones(1, 2), "id": ["b"]}
        >>> joined([a, b])
        {'x': tensor([[0., 0.],
                [1., 1.]]), 'id': ['a', 'b']}
    """
    return _join(parts, [samples(part) for part in parts])


def _join(parts: Sequence[Any], sizes: list[int]) -> Any:
    first = parts[0]
    if isinstance(first, Tensor):
        return _concatenated(parts)
    if isinstance(first, list | tuple) and all(map(_is_per_sample, parts, sizes)):
        return type(first)(value for part in parts for value in part)
    if isinstance(first, Mapping):
        keys = {key: [part[key] for part in parts] for key in first}
        return _with_values(first, {key: _join(values, sizes) for key, values in keys.items()})
    if isinstance(first, list | tuple):
        inner = (_join(values, sizes) for values in zip(*parts, strict=True))
        return type(first)(*inner) if hasattr(first, "_fields") else type(first)(inner)
    if isinstance(getattr(first, "shape", None), tuple) or any(part != first for part in parts):
        raise BatchError(f"microbatches with a {type(first).__name__} cannot be joined to one")
    return first


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    try:
        return torch.cat(list(parts))
    except (RuntimeError, TypeError) as error:
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise BatchError(f"tensors of shapes {shapes} cannot stand in one batch") from error


def _is_per_sample(value: Any, total: int) -> bool:
    """Texts, file names, numpy arrays: no tensor, but as long as the batch."""
    if isinstance(getattr(value, "shape", None), tuple):
        return bool(value.shape[:1] == (total,))
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or len(value) != total:
        return False
    if isinstance(value, tuple) and all(isinstance(inner, Real) for inner in value):
        return False  # a size of images, not one number a sample
    return next(tensors_in(value), None) is None


def _with_values(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    if isinstance(batch, UserDict):
        # A tokenizer's encoding keeps more of the whole batch in attributes: left behind.
        return type(batch)(values)
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return values
    piece = copy.copy(batch)
    for key, value in values.items():
        piece[key] = value
    return piece


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested mappings, sequences and sets.

    Example:
        >>> import torch
        >>> [t.item() for t in tensors_in({"a": torch.tensor(1), "b": [torch.tensor(2), "text"]})]
        [1, 2]
    """
    found: list[Tensor] = []
    _collect(value, found)
    return iter(found)


def _collect(value: Any, found: list[Tensor]) -> None:
    # Called for the arguments of every function of torch in a window, so no generators.
    if value is None or type(value) in _PLAIN:
        return
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, tuple | list | set):
        for inner in value:
            _collect(inner, found)
    elif isinstance(value, Mapping):
        for inner in value.values():
            _collect(inner, found)


def _placed(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """Every tensor, and the keys that lead to it."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _placed(inner, (*path, key))
    elif isinstance(value, tuple | list | set):
        for i, inner in enumerate(value):
            yield from _placed(inner, (*path, i))
