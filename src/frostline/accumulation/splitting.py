"""A batch in microbatches."""

from __future__ import annotations

from typing import Any

from frostline._batches import pieces, pieces_of, samples
from frostline.errors import BatchError


def split(batch: Any, *, size: int | None = None, count: int | None = None) -> list[Any]:
    """Cut a batch along its samples into microbatches: views, not copies.

    Exactly one of ``size`` and ``count`` is given. Beside tensors, texts and other values are cut
    where there is one a sample (a list as long as the batch); all else is in every microbatch as
    it is.

    Args:
        batch: a tensor, or tensors in tuples, lists, dicts, named tuples or a tokenizer's encoding,
            nested or not, which share their first dimension, the samples.
        size: samples in a microbatch, 1 or more; the last one may be shorter.
        count: microbatches, from 1 to the number of samples, of nearly equal size.

    Returns:
        the microbatches, each in the form of the batch.

    Raises:
        BatchError: neither or both of ``size`` and ``count``, or no positive whole number; fewer
            samples than ``count``; tensors with different first dimensions.

    Example:
        >>> import torch
        >>> x, y = torch.zeros(7, 3), torch.arange(7)
        >>> [len(labels) for _, labels in split((x, y), size=3)]
        [3, 3, 1]
        >>> [len(labels) for _, labels in split((x, y), count=3)]
        [3, 2, 2]
    """
    if (size is None) == (count is None):
        raise BatchError(
            f"size={size!r}, count={count!r}: expected one of them, as fl.split(batch, size=8) or "
            "fl.split(batch, count=4)"
        )
    _check("size", size)
    _check("count", count)
    try:
        samples(batch)
    except BatchError as error:
        raise BatchError(
            f"fl.split cannot tell the samples of this batch: {error}. Cut it yourself:\n"
            "    [(x[i:i + 8], y[i:i + 8]) for i in range(0, len(x), 8)]"
        ) from None
    return pieces_of(batch, size) if size is not None else pieces(batch, count or 1)


def _check(name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BatchError(f"{name}={value!r}: expected a whole number, 1 or more, as {name}=4")
