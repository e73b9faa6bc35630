"""The arithmetic of a batch norm whose batch comes in parts.

Formulas (Ioffe and Szegedy 2015), per channel, with N values in all parts: xh = (x - mean) inv,
inv = (var + eps)^-1/2, y = weight xh + bias; with SD = sum dy and SDX = sum dy xh over all parts,
dx = weight inv (dy - SD / N - xh SDX / N). No dx exists before both sums are complete.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from frostline._moments import Moments
from frostline.errors import AccumulationError


@dataclass(frozen=True, eq=False, slots=True)
class Statistics:
    """What a norm call normalises with.

    Attributes:
        count: values of a channel in all parts.
        mean: [channels], float64.
        variance: [channels], over n, float64.
        eps: added to the variance.
    """

    count: int
    mean: Tensor
    variance: Tensor
    eps: float
    _cast: dict[torch.dtype, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, moments: Moments, eps: float) -> Statistics:
        """The statistics of all parts.

        Raises:
            AccumulationError: a channel has fewer than two values, which torch refuses, too.
        """
        if moments.count < 2:
            raise AccumulationError(
                f"a batch norm got {moments.count} value for each channel in all microbatches "
                "together; expected 2 or more"
            )
        return cls(moments.count, moments.mean, moments.variance(), eps)

    @property
    def inverse(self) -> Tensor:
        """One over the standard deviation, [channels], float64."""
        return (self.variance + self.eps).rsqrt()

    def cast(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and inverse in ``dtype``; made once for all parts."""
        if dtype not in self._cast:
            vectors = (self.mean, self.variance, self.inverse)
            mean, variance, inverse = (vector.to(dtype) for vector in vectors)
            self._cast[dtype] = mean, variance, inverse
        return self._cast[dtype]


def normalise(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Statistics
) -> Tensor:
    """The output for one part, in the dtype of ``x``."""
    dtype = _dtype(x)
    mean, variance, _ = statistics.cast(dtype)
    weight, bias = (None if vector is None else vector.to(dtype) for vector in (weight, bias))
    return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, statistics.eps)


@dataclass(frozen=True, eq=False, slots=True)
class Sums:
    """Over the values of one part, or of all: SD and SDX, each [channels], float64."""

    dy: Tensor
    dy_x: Tensor

    @classmethod
    def of(cls, dy: Tensor, x: Tensor, statistics: Statistics) -> Sums:
        """The sums of one part; they are the gradients of its bias and weight."""
        if not x.numel():  # the kernel divides by the number of samples
            nothing = torch.zeros_like(statistics.mean)
            return cls(nothing, nothing)
        mean, variance, inverse = statistics.cast(_dtype(x))
        _, dy_x, total = torch.ops.aten.native_batch_norm_backward(
            dy, x, None, mean, variance, mean, inverse, False, statistics.eps, [False, True, True]
        )
        return cls(total.double(), dy_x.double())

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.dy + other.dy, self.dy_x + other.dy_x)


def input_gradient(
    dy: Tensor, x: Tensor, weight: Tensor | None, statistics: Statistics, sums: Sums
) -> Tensor:
    """The gradient of one part's input.

    Args:
        dy: gradient of its output.
        x: its input.
        weight: [channels] or None.
        statistics: of all parts.
        sums: of all parts.
    """
    inverse = statistics.inverse
    scale = inverse if weight is None else inverse * weight.detach().double()
    slope = -scale * inverse * sums.dy_x / statistics.count
    constant = -scale * sums.dy / statistics.count - slope * statistics.mean
    dtype = _dtype(x)
    scale, slope, constant = (vector.to(dtype) for vector in (scale, slope, constant))
    # The fastest kernel for slope x + constant is that of a batch norm in eval mode.
    still = torch.zeros_like(slope), torch.ones_like(slope)
    # Not by torch.nn.functional, which refuses an eps of 0 in some releases.
    cudnn = torch.backends.cudnn.enabled
    gradient = torch.batch_norm(x.to(dtype), slope, constant, *still, False, 0.0, 0.0, cudnn)
    shape = [1, -1] + [1] * (x.dim() - 2)
    return gradient.addcmul_(dy.to(dtype), scale.view(shape)).to(x.dtype)


def _dtype(x: Tensor) -> torch.dtype:
    """That of a norm's vectors: never half precision."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
