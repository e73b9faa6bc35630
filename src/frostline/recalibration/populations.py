"""What norms saw: the population that their statistics are taken of."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline._moments import Moments
from frostline.lockstep.norm_calls import NormCall


class OverBatches:
    """All values of a channel count alike: what a batch norm is about."""

    def __init__(self) -> None:
        self._moments: Moments | None = None

    @property
    def values(self) -> int:
        """How many each channel has seen."""
        return 0 if self._moments is None else self._moments.count

    def add(self, moments: Moments) -> None:
        """Those of one more call."""
        before = self._moments
        self._moments = moments if before is None else Moments.merged([before, moments])

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean, and variance over n - 1; [channels], float64."""
        assert self._moments is not None  # noqa: S101
        return self._moments.mean, self._moments.variance(correction=1)


class OverSamples:
    """Each sample has a mean and a variance, and these are averaged: tracked instance norms."""

    def __init__(self) -> None:
        self.values = 0
        self._samples = 0
        self._sums: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        """An input [samples, channels, ...] of one more call."""
        variance, mean = torch.var_mean(x.detach().to(_wide(x)).flatten(2), dim=2, correction=1)
        sums = [each.double().sum(0) for each in (mean, variance)]
        before = self._sums or [torch.zeros_like(each) for each in sums]
        self._sums = [a + b for a, b in zip(before, sums, strict=True)]
        self._samples += x.shape[0]
        self.values += x.numel() // x.shape[1]

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Means over the samples of their mean and of their variance over n - 1, float64."""
        mean, variance = (total / self._samples for total in self._sums)
        return mean, variance


def normalised(call: NormCall, moments: Moments) -> Tensor:
    """The output of a batch norm that uses these moments; nothing is written."""
    # Not rounded to the dtype of a narrow model: torch's own batch statistics are not, either.
    mean, variance, weight, bias = (
        None if t is None else t.to(_wide(call.input))
        for t in (moments.mean, moments.variance(), call.weight, call.bias)
    )
    return F.batch_norm(call.input, mean, variance, weight, bias, False, 0.0, call.eps)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
