"""The microbatches of a window one after the other, each with a backward of its own.

Gradients are the big batch's where no norm looks across the batch, and the memory is that of one
microbatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frostline.accumulation.arguments import checked_loss, nonfinite, refuse_nonfinite
from frostline.accumulation.gradients import set_aside
from frostline.accumulation.ranks import Ranks
from frostline.accumulation.statistics.windows import RunningStatistics
from frostline.accumulation.undoing import all_or_nothing

ComputeLoss = Callable[[nn.Module, Any], Any]
Backward = Callable[[Tensor], Any]


def one_by_one(
    model: nn.Module,
    compute_loss: ComputeLoss,
    microbatches: Sequence[Any],
    weights: Sequence[float],
    statistics: RunningStatistics,
    backward: Backward | None = None,
) -> Tensor:
    """Add the gradient of sum_k w_k loss_k to ``.grad``, and return that loss, detached.

    A microbatch without items (weight 0) goes forward for the running statistics alone. Under
    DistributedDataParallel and FSDP gradients are exchanged once, with the last one.

    Args:
        model: in the mode to train in.
        compute_loss: gives the mean loss over the items of a microbatch.
        microbatches: one or more.
        weights: w_k, which sum to 1.
        statistics: committed if all losses are finite numbers.
        backward: called with w_k loss_k in place of its ``backward()``; it may scale, and is left
            to deal with a loss that is no finite number.

    Raises:
        AccumulationError: a loss is no finite scalar. After any exception the model, gradients,
            statistics and random generators are as before.
    """
    with all_or_nothing(model), _closing(statistics), set_aside(model):
        losses = _run(model, compute_loss, microbatches, weights, statistics, backward)
        if backward is None:
            refuse_nonfinite(losses)
            statistics.commit()
        elif nonfinite(losses):
            statistics.discard()
        else:
            statistics.commit()
    return torch.stack([loss * w for loss, w in zip(losses, weights, strict=True)]).sum()


def _run(
    model: nn.Module,
    compute_loss: ComputeLoss,
    microbatches: Sequence[Any],
    weights: Sequence[float],
    statistics: RunningStatistics,
    backward: Backward | None,
) -> list[Tensor]:
    ranks, count = Ranks(model), len(microbatches)
    last = max(k for k, weight in enumerate(weights) if weight)
    losses = []
    for k, (microbatch, weight) in enumerate(zip(microbatches, weights, strict=True)):
        with ranks.exchanging(now=k == last):
            with statistics.forward(count):
                loss = checked_loss(compute_loss(model, microbatch), model, k)
            if weight and loss.requires_grad:
                with statistics.backward():
                    (backward or Tensor.backward)(loss * weight)
        # The mean over no items is NaN, which counts for nothing.
        losses.append(loss.detach() if weight else torch.zeros_like(loss))
        del loss
    return losses


@contextmanager
def _closing(statistics: RunningStatistics) -> Iterator[None]:
    """No window stays open after an exception."""
    try:
        yield
    except BaseException:
        statistics.discard()
        raise
