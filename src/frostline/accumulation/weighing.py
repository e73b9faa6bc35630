"""How much each microbatch weighs in the window: by its items, n_k / n.

The loss of a microbatch is a mean over its items (samples, or tokens that are not ignored), so the
mean over the window is sum_k (n_k / n) loss_k; the mean of the means is that only if all n_k are
equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from frostline._batches import samples
from frostline.errors import AccumulationError, BatchError

Items = Callable[[Any], Any]


def counts(microbatches: Sequence[Any], items: Items | None = None) -> list[int]:
    """The items of each microbatch, 0 or more.

    Args:
        microbatches: one or more.
        items: gives the count of a microbatch: a whole number, or a tensor that holds one. Without
            it, items are samples: the first dimension.

    Raises:
        BatchError: no ``items``, and the tensors of a microbatch differ in their first dimension.
        AccumulationError: a count is no whole number, or below 0; or there is no item in all.

    Example:
        >>> import torch
        >>> counts([torch.zeros(4, 2), torch.zeros(3, 2)])
        [4, 3]
        >>> counts([torch.tensor([7, -100]), torch.tensor([8, 9])], lambda y: (y != -100).sum())
        [1, 2]
    """
    found = [
        _samples(microbatch, k) if items is None else _whole(items(microbatch), k)
        for k, microbatch in enumerate(microbatches)
    ]
    if not sum(found):
        raise AccumulationError(
            f"the {len(found)} microbatches hold no items at all, so their loss has no mean. "
            "Leave such a window out"
        )
    return found


def weights(items: Sequence[int]) -> list[float]:
    """The share of each microbatch in the window's loss; they sum to 1.

    Example:
        >>> weights([3, 0, 1])
        [0.75, 0.0, 0.25]
    """
    total = sum(items)
    return [count / total for count in items]


def _samples(microbatch: Any, k: int) -> int:
    try:
        return samples(microbatch)
    except BatchError as error:
        raise BatchError(
            f"microbatch {k}: {error}. Say what one item is: "
            "items=lambda batch: len(batch['labels'])"
        ) from None


def _whole(value: Any, k: int) -> int:
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if not isinstance(number, bool) and isinstance(number, Real):
        count = float(number)
        if count.is_integer() and count >= 0:
            return int(count)
    shown = f"a tensor {list(number.shape)}" if isinstance(number, Tensor) else repr(number)
    raise AccumulationError(
        f"items gave {shown} for microbatch {k}; expected its number of items, 0 or more, as "
        "items=lambda batch: int((batch['labels'] != -100).sum())"
    )
