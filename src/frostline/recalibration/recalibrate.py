"""``recalibrate``: set running statistics to the statistics of a calibration set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from frostline.selection import Selector

if TYPE_CHECKING:
    from frostline.recalibration.result import Recalibration

# The machinery is loaded when somebody asks: `import frostline` is for everyone.

Method = Literal["layerwise", "merged"]


def recalibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    method: Method = "layerwise",
    select: Selector = None,
    samples: int | None = 1024,
) -> Recalibration:
    """Set the running statistics of norms to the population statistics of a calibration set.

    ``"layerwise"`` leaves what the whole set would leave in *one* training-mode forward, with
    momentum 1: each norm normalises with the statistics of all samples before the next norm sees
    them. How the set is split into batches makes no difference but for rounding; batches of one
    sample will do. All batches wait at each norm together, so memory grows with ``samples``; what
    is needed is measured on the first batch and compared with what is free.

    ``"merged"`` takes one pass with one batch in memory: each batch is normalised with itself, and
    the moments of the batches are merged (Chan, Golub and LeVeque 1983), each value counting once.
    Deep norms then depend on the size of the batches.

    Taking part are all BatchNorm and InstanceNorm with running statistics that nobody holds,
    whatever their mode and momentum. All else runs as in eval mode, held norms and those that are
    not selected included. ``running_var`` is over n - 1, as torch's. A norm that is called several
    times in a forward gets the moments of all its calls, merged; an InstanceNorm the mean over the
    samples, as torch's. ``num_batches_tracked`` goes on by what one forward counts.
    Nothing else changes, and nothing at all after an exception.

    Args:
        model: in any mode; it is left in the modes that it was in.
        batches: a list of batches, a DataLoader that does not shuffle, or anything with a length
            that gives the same batches each time; for ``"merged"`` any iterable. A dict is called
            as ``model(**batch)``, a tuple or list as ``model(batch[0])``, anything else as
            ``model(batch)``.
        method: ``"layerwise"`` or ``"merged"``.
        select: the part whose norms are meant; None is the whole model.
        samples: about how many samples to use: every n-th batch, as many as reach that number. 10^3
            to 10^4 suffice (Wu and Johnson 2021). None uses all.

    Returns:
        a :class:`Recalibration`: old against new for each norm, and ``undo()``.

    Raises:
        SelectionError: ``select`` matches nothing, or no norm that could take part.
        BatchError: the model cannot be run on a batch, or there is none; or under ``"layerwise"``
            the set has no length or another order at each pass.
        AccumulationError: there are no such statistics (not finite, or fewer than 2 values in a
            channel), a norm cannot be joined over the batches, or memory does not suffice.
        TypeError, ValueError: what is no model, no set of batches, no method, no number.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        >>> images = torch.arange(24.0).reshape(8, 3)
        >>> result = recalibrate(net, [images[:5], images[5:]])
        >>> torch.allclose(net[1].running_mean, net[0](images).mean(0))
        True
        >>> result.undo()
        >>> net[1].running_mean
        tensor([0., 0., 0., 0.])
    """
    from frostline.recalibration import arguments, making

    arguments.check(model, batches, method, samples)
    return making.make(model, batches, method, select, samples)
