"""The few samples that a probe runs a model on, and what takes their places."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from frostline._batches import pieces_of, samples, tensors_in
from frostline.errors import BatchError


def in_first_half(count: int) -> tuple[bool, ...]:
    """For each of 2 or 4 samples, to which half it belongs.

    Not the first two: some code looks at groups of neighbours, or at every second sample.
    """
    return (True, False, False, True)[:count]


class Samples:
    """A batch of few samples in two halves, either of which other samples can take the place of.

    The others are real samples too, so that what is true of data stays true of them: ranges,
    lengths, masks that belong to texts. If there are not enough, the halves change places.

    Args:
        pool: batches of one sample each, 2 or more.
        most: samples in the batch at most, 2 or 4.
        stirred: whether noise is added to the floating-point numbers of those others, for a batch
            whose samples are all alike.

    Attributes:
        count: samples in the batch, 2 or 4.
        is_stirred: whether there is noise.
    """

    def __init__(self, pool: Sequence[Any], most: int, *, stirred: bool = False) -> None:
        self.count = 4 if min(most, len(pool)) >= 4 else 2
        self.is_stirred = stirred
        self._pool = pool
        self._base = list(pool[: self.count])
        self._others = [pool[self._other(place)] for place in range(self.count)]
        if stirred:
            self._others = [_stirred(sample, seed) for seed, sample in enumerate(self._others)]

    def _other(self, place: int) -> int:
        spare = self.count + place
        return spare if spare < len(self._pool) else (place + self.count // 2) % self.count

    def stirred(self) -> Samples:
        """The same with noise."""
        return Samples(self._pool, self.count, stirred=True)

    def batch(self, *, first: bool = False, second: bool = False) -> Any:
        """A new batch, with others in the places of its first half, of its second, or of both."""
        replaced = [first if own else second for own in in_first_half(self.count)]
        return joined(
            [
                other if is_replaced else sample
                for is_replaced, sample, other in zip(
                    replaced, self._base, self._others, strict=True
                )
            ]
        )

    def doubled(self) -> Any:
        """A new batch of the same samples, and of the same once more."""
        return joined(self._base * 2)


def taken_from(microbatches: Sequence[Any], most: int) -> Samples:
    """Samples of a batch, or of several where the first holds only one.

    Args:
        microbatches: batches in the form that the model takes, one or more.
        most: samples in the probe's batch at most, 2 or 4.

    Raises:
        BatchError: there are fewer than two samples, or none can be told.

    Example:
        >>> few = taken_from([torch.arange(3.0)], most=2)
        >>> few.batch(), few.batch(first=True), few.batch(second=True)
        (tensor([0., 1.]), tensor([2., 1.]), tensor([0., 0.]))
    """
    wanted = 2 * most
    pool: list[Any] = []
    for microbatch in microbatches:
        if samples(microbatch):
            pool += pieces_of(microbatch, 1)[: wanted - len(pool)]
        # Samples of one microbatch surely fit together; those of two may have other lengths.
        if len(pool) >= (2 if samples(microbatch) > 1 else wanted):
            break
    if len(pool) < 2:
        raise BatchError(
            f"a probe replaces one sample and looks at the others, and there is {len(pool)} in the "
            "batch; pass 2 samples or more"
        )
    return Samples(pool, most)


def joined(parts: Sequence[Any]) -> Any:
    """One batch of several in the same form, along their first dimension; in new memory.

    Raises:
        BatchError: they do not fit together.

    Example:
        >>> joined([{"x": torch.zeros(1, 2)}, {"x": torch.ones(1, 2)}])
        {'x': tensor([[0., 0.],
                [1., 1.]])}
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return _concatenated(parts)
    if isinstance(first, Mapping):
        values = {key: joined([part[key] for part in parts]) for key in first}
        return _like(first, values)
    if isinstance(first, list | tuple):
        if len(first) == 1 and next(tensors_in(first), None) is None:
            return _sequence(first, (value for part in parts for value in part))  # a text each
        return _sequence(first, (joined(values) for values in zip(*parts, strict=True)))
    if isinstance(getattr(first, "shape", None), tuple):
        raise BatchError(f"samples in a {type(first).__name__} cannot be put together")
    return first


def _sequence(like: Any, values: Iterable[Any]) -> Any:
    return type(like)(*values) if hasattr(like, "_fields") else type(like)(values)


def _concatenated(parts: Sequence[Tensor]) -> Tensor:
    try:
        whole = torch.cat([part.detach() for part in parts])
    except (RuntimeError, TypeError) as error:
        shapes = ", ".join(str(list(part.shape)) for part in parts)
        raise BatchError(f"samples of shapes {shapes} cannot stand in one batch") from error
    return whole.requires_grad_(parts[0].requires_grad)


def _like(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return values
    whole = copy.copy(batch)
    whole.update(values)
    return whole


def _stirred(sample: Any, seed: int) -> Any:
    """A copy with noise in its floating-point tensors, drawn from a generator of its own."""
    copied = joined([sample])
    for tensor in tensors_in(copied):
        if tensor.is_floating_point() or tensor.is_complex():
            with torch.no_grad():
                tensor.add_(_noise(tensor, seed))
    return copied


def _noise(tensor: Tensor, seed: int) -> Tensor:
    draw = torch.Generator(tensor.device).manual_seed(seed)
    return torch.randn(tensor.shape, generator=draw, device=tensor.device, dtype=tensor.dtype)
