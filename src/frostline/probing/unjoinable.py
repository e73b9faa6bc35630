"""What an exact big batch cannot be put together from: coupling beside the calls of batch norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from frostline.freezing.planning import unwrapped
from frostline.probing.naming import couplers
from frostline.probing.outside import modules_beside
from frostline.probing.probe import Probe, Reduction, look
from frostline.probing.putting_back import put_back
from frostline.probing.result import Coupler
from frostline.probing.running import Items, Loss, running
from frostline.probing.samples import taken_from

_MOST = 2  # samples in each of the runs


def unjoined(
    model: nn.Module,
    compute_loss: Loss,
    microbatches: Sequence[Any],
    *,
    items: Items | None = None,
) -> list[Coupler] | None:
    """What couples samples in other ways than by batch norm calls that use the batch.

    The model runs five times on two samples, each of those calls with statistics that neither
    moves. Everything is put back.

    Args:
        model: the model, as it is to be trained.
        compute_loss: called as ``compute_loss(model, batch)``.
        microbatches: of a window; two samples are taken from the first, or one each from two.
        items: how many items of a batch the loss is the mean of; without, samples.

    Returns:
        Modules and the loss that do, none if all is well; None if it could not be checked: the
        microbatches cannot be cut or put together, or the model does not take these samples.

    Example:
        >>> import torch
        >>> class Centred(nn.Module):
        ...     def forward(self, x):
        ...         return x - x.mean(0)
        >>> def loss(model, batch):
        ...     return model(batch).square().mean()
        >>> window = [torch.randn(4, 3), torch.randn(4, 3)]
        >>> unjoined(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), loss, window)
        []
        >>> net = nn.Sequential(nn.Linear(3, 3), Centred())
        >>> [coupler.name for coupler in unjoined(net, loss, window)]
        ['1']
    """
    model = unwrapped(model)
    run = running(model, compute_loss, items)
    beside = modules_beside(model, compute_loss)
    try:
        with put_back([model, *beside]):
            samples = taken_from(microbatches, _MOST)
            _, found = look(model, run, samples, beside=beside, joined=True)
    except Exception:
        return None
    return couplers(model, found, found, (), judged=True) if found.moved else None


def reduction(model: nn.Module, compute_loss: Loss, microbatches: Sequence[Any]) -> Reduction:
    """Whether a loss is the mean or the sum over its samples.

    The same two samples once and twice over: a mean does not change, a sum is twice as large.

    Args:
        model: the model, as it is to be trained.
        compute_loss: called as ``compute_loss(model, batch)``.
        microbatches: of a window; two samples are taken from the first, or one each from two.

    Returns:
        "unknown" also where it could not be checked.

    Example:
        >>> import torch
        >>> net, window = nn.Linear(2, 1), [torch.randn(4, 2)]
        >>> reduction(net, lambda model, batch: model(batch).square().sum(), window)
        'sum'
    """
    model = unwrapped(model)
    run = running(model, compute_loss)
    beside = modules_beside(model, compute_loss)
    try:
        with put_back([model, *beside]):
            samples = taken_from(microbatches, _MOST)
            return Probe(model, run, samples, beside=beside, joined=True).reduction()
    except Exception:
        return "unknown"
