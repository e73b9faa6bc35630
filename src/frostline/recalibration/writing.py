"""New statistics into the buffers of norms, and how far they are from the old ones."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from frostline._names import join
from frostline.recalibration.norms import Norm
from frostline.recalibration.result import Old, Recalibrated, Spread


@dataclass(frozen=True, eq=False)
class Fresh:
    """What a norm is to get.

    Attributes:
        norm: which one.
        calls: how often it is called in a forward.
        values: how many values a channel has seen.
        counts: by how much its counter goes on.
        mean: [channels], float64.
        variance: [channels], over n - 1, float64.
    """

    norm: Norm
    calls: int
    values: int
    counts: int
    mean: Tensor
    variance: Tensor

    def compared(self) -> Recalibrated:
        """With what the norm has now."""
        norm = self.norm
        eps = getattr(norm.module, "eps", 0.0)
        deviation = (self.variance + eps).sqrt()
        return Recalibrated(
            norm.name,
            type(norm.module).__name__,
            self.calls,
            self.values,
            moved=Spread.of((self.mean - norm.mean.double()).abs() / deviation),
            ratio=Spread.of((self.variance + eps) / (norm.variance.double() + eps)),
        )

    def old(self) -> list[Old]:
        """Copies of the buffers that will be written."""
        own = {"running_mean": self.norm.mean, "running_var": self.norm.variance}
        if self.norm.counter is not None:
            own["num_batches_tracked"] = self.norm.counter
        module = weakref.ref(self.norm.module)
        return [
            Old(join(self.norm.name, name), module, name, buffer.detach().clone())
            for name, buffer in own.items()
        ]


def write(fresh: Sequence[Fresh]) -> None:
    """All of them."""
    for one in fresh:
        _put(one.norm.mean, one.mean)
        _put(one.norm.variance, one.variance)
        if one.norm.counter is not None and one.counts:
            _put(one.norm.counter, one.norm.counter + one.counts)


def _put(buffer: Tensor, value: Tensor) -> None:
    # What was made under inference mode is written there alone.
    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
        buffer.copy_(value)
