"""The batches that are used: drawn evenly over the set, and loaded one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import chain, islice
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from frostline._batches import tensors_in
from frostline._calling import how_called
from frostline.errors import BatchError

_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Drawn:
    """The batches to use, loaded as they are asked for, and counted as they go by.

    Args:
        batches: those.
        count: how many there are; None where only going through them tells.

    Attributes:
        expected: ``count``.
        called: how the model is called with them, in words.
        count: how many went by.
        samples: how many samples were in those.

    Raises:
        BatchError: there is none.
    """

    def __init__(self, batches: Iterable[Any], count: int | None) -> None:
        self._batches = iter(batches)
        first = next(self._batches, None)
        if first is None:
            raise BatchError(
                "the calibration set is empty; expected one batch or more. Was an iterator used up "
                "before?"
            )
        self._batches = chain([first], self._batches)
        self.expected, self.called = count, how_called(first)
        self.count = self.samples = 0

    def first(self) -> Any:
        """The first batch, which goes by like all others afterwards."""
        first = next(self._batches)
        self._batches = chain([first], self._batches)
        return first

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            self.count += 1
            self.samples += samples_in(batch)
            yield batch
        if self.expected not in (None, self.count):
            raise BatchError(
                f"{self.expected} batches were to be used of the calibration set, and it ended "
                f"after {self.count}; its len() must be right"
            )


def draw(batches: Iterable[Any], samples: int | None, *, repeatable: bool) -> Drawn:
    """Every n-th batch, as many as it takes for about ``samples``; the first ones of an iterator.

    Args:
        batches: the calibration set.
        samples: how many samples are wanted; None is all.
        repeatable: refuse a set that another pass would give otherwise.

    Raises:
        BatchError: there is no batch, or it is not repeatable.
    """
    if repeatable:
        _refuse_what_changes(batches)
    if isinstance(batches, DataLoader) and _plain(batches):
        return _of_loader(batches, samples)
    if isinstance(batches, Sequence):
        chosen = _evenly(len(batches), samples, samples_in(batches[0]) if batches else 1)
        return Drawn((batches[i] for i in chosen), len(chosen))
    length = _length(batches)
    if length is None and repeatable:
        raise BatchError(
            f"{_what(batches)} has no length, so samples cannot be drawn evenly from it, nor can "
            'the memory be predicted. Pass list(batches) if that fits, or method="merged"'
        )
    return _of_iterable(batches, length, samples)


def samples_in(batch: Any) -> int:
    """How many samples the model sees in a batch: the first dimension of its first tensor.

    Raises:
        BatchError: there is no tensor with a dimension, or there are no samples.

    Example:
        >>> import torch
        >>> samples_in((torch.zeros(3, 2), "labels"))
        3
    """
    shapes = (tensor.shape for tensor in tensors_in(batch) if tensor.dim())
    count = next((shape[0] for shape in shapes), None)
    if count is None:
        raise BatchError(
            f"a batch is a {type(batch).__name__} without a tensor [samples, ...] in it; expected "
            "a dict, tuple or list with one, or a tensor"
        )
    if count == 0:
        raise BatchError("a batch has no samples in it; leave empty batches out")
    return count


def _evenly(length: int, samples: int | None, size: int) -> list[int]:
    """Indices of the batches to use, the first among them."""
    count = length if samples is None else min(length, -(-samples // size))
    return [i * length // count for i in range(count)]


def _of_iterable(batches: Iterable[Any], length: int | None, samples: int | None) -> Drawn:
    if length is None:
        return Drawn(_until(batches, samples), None)
    whole = Drawn(batches, length)
    chosen = _evenly(length, samples, samples_in(whole.first()))
    wanted, until = set(chosen), islice(whole, chosen[-1] + 1)
    return Drawn((batch for i, batch in enumerate(until) if i in wanted), len(chosen))


def _until(batches: Iterable[Any], samples: int | None) -> Iterator[Any]:
    seen = 0
    for batch in batches:
        yield batch
        seen += samples_in(batch)
        if samples is not None and seen >= samples:
            return


def _of_loader(loader: DataLoader[Any], samples: int | None) -> Drawn:
    """Load only what is used: with other batches left out, of the indices that the loader has."""
    listed = list(loader.batch_sampler or ())
    chosen = _evenly(len(listed), samples, len(listed[0]) if listed else 1)
    if len(chosen) == len(listed):
        return Drawn(loader, len(listed))
    some: DataLoader[Any] = DataLoader(
        loader.dataset,
        batch_sampler=[listed[i] for i in chosen],
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
    )
    return Drawn(some, len(chosen))


def _plain(loader: DataLoader[Any]) -> bool:
    """Whether nothing but indices decides what it gives."""
    return (
        type(loader) is DataLoader
        and type(loader.batch_sampler) is BatchSampler
        and type(loader.sampler) is SequentialSampler
    )


def _refuse_what_changes(batches: Any) -> None:
    samplers = [getattr(batches, "sampler", None), getattr(batches, "batch_sampler", None)]
    samplers.append(getattr(samplers[1], "sampler", None))
    for sampler in samplers:
        if isinstance(sampler, _SHUFFLING) or getattr(sampler, "shuffle", False) is True:
            raise BatchError(
                f"{_what(batches)} shuffles ({type(sampler).__name__}), so each call would draw "
                'other samples, and give other statistics: under method="layerwise" a calibration '
                "set has an order. Write DataLoader(loader.dataset, batch_size=..., shuffle=False)"
            )


def _length(batches: Any) -> int | None:
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except TypeError:  # a loader of an iterable data set
        return None


def _what(batches: Any) -> str:
    return f"batches, a {type(batches).__name__},"
