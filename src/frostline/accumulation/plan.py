"""``plan``: which way ``accumulate`` would take, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from frostline.accumulation.exact.planning import Plan

# The machinery is loaded when somebody asks: `import frostline` is for everyone.


def plan(
    model: nn.Module,
    compute_loss: Callable[[nn.Module, Any], Tensor],
    microbatches: Sequence[Any],
    *,
    memory: int | float | str | None = None,
) -> Plan:
    """Say how ``accumulate(..., offload="auto")`` would run this window; run one microbatch.

    Args:
        model: in the mode to train in.
        compute_loss: ``(model, batch) -> loss``, the mean over the samples of a batch.
        microbatches: a list of batches.
        memory: bytes that may be used, as a number or a text like "4GB"; None for what is free.

    Returns:
        a :class:`Plan`, to be printed: the ways, what each takes at most, and the one it takes.

    Raises:
        AccumulationError: wrong arguments.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> window = list(torch.randn(8, 3).split(2))
        >>> plan(net, lambda m, x: m(x).square().mean(), window, memory="1GB").chosen.name
        'the big batch'
    """
    from frostline.accumulation import arguments, window

    arguments.check(
        model,
        compute_loss,
        microbatches,
        items=None,
        batchnorm="exact",
        offload="auto",
        memory=memory,
        backward=None,
    )
    asked = window.Window(model, compute_loss, microbatches, None, None)
    return asked.plan(arguments.bytes_of(memory))
