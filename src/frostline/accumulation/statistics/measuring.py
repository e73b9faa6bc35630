"""Calls of norms that update nothing, and what they saw of their inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from frostline._moments import Moments
from frostline._state import write_bits
from frostline.lockstep.norm_calls import (
    NormCall,
    NormCalls,
    native_batch_norm,
    native_instance_norm,
)

Buffers = tuple[Tensor, Tensor]  # running_mean, running_var: torch takes both or none


@dataclass(frozen=True, eq=False)
class Averages:
    """What an instance norm averages: the means and variances of its samples.

    Attributes:
        count: samples.
        mean: average of the means of the samples, [channels], float64.
        spread: average of their variances over n - 1, [channels], float64.
    """

    count: int
    mean: Tensor
    spread: Tensor

    def merged(self, other: Averages) -> Averages:
        """Those of the samples of both."""
        count = self.count + other.count
        share = other.count / max(count, 1)
        return Averages(
            count,
            self.mean + (other.mean - self.mean) * share,
            self.spread + (other.spread - self.spread) * share,
        )


Seen = Moments | Averages


@dataclass(frozen=True, eq=False)
class Waiting:
    """The update of one call of a norm, which waits for the end of the window.

    Attributes:
        buffers: the running statistics that it is for.
        number: which call with these buffers in a forward this is, from 0.
        momentum: of the latest call.
        seen: all inputs of the window so far.
    """

    buffers: Buffers
    number: int
    momentum: float
    seen: Seen

    @property
    def key(self) -> tuple[int, int]:
        """Calls with one key in several forwards are one update."""
        return id(self.buffers[0]), self.number

    def after(self, earlier: Waiting | None) -> Waiting:
        """This one, with all that was seen earlier in the window."""
        return self if earlier is None else replace(self, seen=_merged(earlier.seen, self.seen))

    def write(self) -> None:
        """Both buffers: (1 - momentum) running + momentum observed, in float64."""
        if not self.seen.count:
            return
        m, observed = self.momentum, _observed(self.seen)
        for running, new in zip(self.buffers, observed, strict=True):
            updated = (1 - m) * running.detach().double() + m * new
            write_bits(running, updated.to(running.dtype))

    def to_dict(self, name: Callable[[Tensor], str]) -> dict[str, Any]:
        """Tensors, numbers and texts, with the buffers by name."""
        is_batch = isinstance(self.seen, Moments)
        return {
            "buffers": [name(buffer) for buffer in self.buffers],
            "number": self.number,
            "momentum": self.momentum,
            "norm": "batch" if is_batch else "instance",
            "seen": dict(vars(self.seen)),
        }

    @classmethod
    def from_dict(cls, entry: dict[str, Any], buffer: Callable[[str, Tensor], Tensor]) -> Waiting:
        """The other way round; tensors go to the device of the buffers."""
        like = entry["seen"]["mean"]
        mean, variance = (buffer(name, like) for name in entry["buffers"])
        seen = _seen_from(entry["norm"], entry["seen"], mean.device)
        return cls((mean, variance), entry["number"], entry["momentum"], seen)


def _seen_from(norm: str, seen: dict[str, Any], device: torch.device) -> Seen:
    count, mean = seen["count"], seen["mean"].to(device)
    if norm == "batch":
        return Moments(count, mean, seen["m2"].to(device))
    return Averages(count, mean, seen["spread"].to(device))


def _merged(a: Seen, b: Seen) -> Seen:
    if isinstance(a, Averages) and isinstance(b, Averages):
        return a.merged(b)
    return Moments.merged(part for part in (a, b) if isinstance(part, Moments))


def _observed(seen: Seen) -> tuple[Tensor, Tensor]:
    return seen.mean, seen.spread if isinstance(seen, Averages) else seen.variance(correction=1)


class Measuring(NormCalls):
    """While it is active, norms give what they give otherwise, and update nothing.

    Args:
        model: whose norms these are.
        tell: gets the update that each call would make, where it would make one.
    """

    def __init__(self, model: nn.Module, tell: Callable[[Waiting], None]) -> None:
        super().__init__(model)
        self._tell = tell
        self._calls: Counter[int] = Counter()

    def batch_norm(self, call: NormCall) -> Tensor:
        """As torch does; its own kernel gives the moments."""
        if call.running_mean is None or call.running_var is None:
            return native_batch_norm(call)
        mean, variance = torch.zeros_like(call.running_mean), torch.zeros_like(call.running_var)
        output = native_batch_norm(_leaving_in(call, mean, variance))
        count = call.input.numel() // max(call.input.shape[1], 1)
        self._note(call, Moments.from_unbiased(count, mean, variance))
        return output

    def instance_norm(self, call: NormCall) -> Tensor:
        """As torch does; its own kernel gives the averages."""
        if call.running_mean is None or call.running_var is None:
            return native_instance_norm(call)
        mean, variance = torch.zeros_like(call.running_mean), torch.zeros_like(call.running_var)
        output = native_instance_norm(_leaving_in(call, mean, variance))
        self._note(call, Averages(call.input.shape[0], mean.double(), variance.double()))
        return output

    def _note(self, call: NormCall, seen: Seen) -> None:
        assert call.running_mean is not None  # noqa: S101
        assert call.running_var is not None  # noqa: S101
        identity = id(call.running_mean)
        buffers, number = (call.running_mean, call.running_var), self._calls[identity]
        self._calls[identity] += 1
        self._tell(Waiting(buffers, number, call.momentum, seen))


def _leaving_in(call: NormCall, mean: Tensor, variance: Tensor) -> NormCall:
    """The same call, which leaves the mean of its input there, and its variance over n - 1."""
    return replace(call, running_mean=mean, running_var=variance, momentum=1.0)
