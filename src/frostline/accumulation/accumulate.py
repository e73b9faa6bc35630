"""``accumulate``: one window of microbatches, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from frostline.accumulation.arguments import BatchNorm, Offload

# The machinery is loaded when somebody asks: `import frostline` is for everyone.


def accumulate(
    model: nn.Module,
    compute_loss: Callable[[nn.Module, Any], Tensor],
    microbatches: Sequence[Any],
    *,
    items: Callable[[Any], int] | None = None,
    batchnorm: BatchNorm = "exact",
    offload: Offload | None = "auto",
    memory: int | float | str | None = None,
    backward: Callable[[Tensor], Any] | None = None,
) -> Tensor:
    """Add the big batch's gradients to ``.grad``, equal also through BatchNorm ("exact").

    What ``compute_loss(model, batch).backward()`` on all microbatches joined would add, up to
    rounding, the running statistics included; or an error that says why that cannot be. Random
    draws (dropout) are equal in distribution only. With the other values of ``batchnorm`` gradients
    equal the big batch's where no norm looks across the batch.

    A model whose norms are all held (:func:`frostline.freeze`) or absent is exact at the memory of
    one microbatch, whatever ``offload`` says.

    Args:
        model: in the mode to train in.
        compute_loss: ``(model, batch) -> loss``, the mean over the items of a batch.
        microbatches: a list of batches, as :func:`frostline.split` gives; they may differ in size.
        items: counts the items of a microbatch, by which it weighs; without, its samples.
        batchnorm: "exact"; "deferred" (each microbatch by itself, running statistics as the big
            batch would leave them); "compensated" (m' = 1 - (1 - m)^(1/K)); "plain", as torch does.
        offload: where "exact" keeps what waits. None: in memory, which takes that of the big batch.
            "cpu": in the host's memory, for a model on a device. "disk": in an unlinked temporary
            file, so that the peak is that of one microbatch. "auto": the fastest way that fits.
        memory: bytes that "auto" may use, as a number or a text like "4GB"; None for what is free.
        backward: called with a loss in place of its ``backward()``: once with the window's, or once
            with each microbatch's share where these go one by one.

    Returns:
        The loss of the big batch, detached.

    Raises:
        AccumulationError: wrong arguments, a loss that is no finite scalar, or what cannot be
            exact; the model, gradients, modes, hooks and random generators are then as before.
        BatchError: microbatches that are no list of batches.

    Example:
        >>> import torch, frostline as fl
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        >>> def compute_loss(model, batch):
        ...     x, y = batch
        ...     return nn.functional.mse_loss(model(x), y)
        >>> batch = torch.randn(32, 3), torch.randn(32, 1)
        >>> loss = fl.accumulate(net, compute_loss, fl.split(batch, size=8))
        >>> net[0].weight.grad is not None, int(net[1].num_batches_tracked)
        (True, 1)

    Sources: Ioffe and Szegedy 2015 for the gradient through the statistics; Ioffe 2021, L2L
    (Pudipeddi 2020), GradCache (Gao 2021) and darknet's ``optimized_memory`` as prior art.
    """
    from frostline.accumulation import arguments, window

    arguments.check(
        model,
        compute_loss,
        microbatches,
        items=items,
        batchnorm=batchnorm,
        offload=offload,
        memory=memory,
        backward=backward,
    )
    asked = window.Window(model, compute_loss, microbatches, items, backward)
    if batchnorm == "exact":
        return asked.exact(offload, arguments.bytes_of(memory))
    return asked.one_by_one(batchnorm)
