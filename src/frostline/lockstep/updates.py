"""What running statistics get: of batch norms at once, of instance norms after all runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from frostline._moments import Moments
from frostline.lockstep.norm_calls import NormCall, native_instance_norm, with_fresh_buffers

if TYPE_CHECKING:
    from frostline.lockstep.lockstep import Run


@dataclass(frozen=True, eq=False)
class _Sums:
    """Of the samples of all runs, for one call: sums of their means and of their variances."""

    call: NormCall
    samples: int
    mean: Tensor
    variance: Tensor


class Updates:
    """Running statistics of one forward in several runs.

    Attributes:
        written: ids of the buffers that were written.
    """

    def __init__(self) -> None:
        self.written: set[int] = set()
        self._sums: dict[tuple[int, int], _Sums] = {}
        self._calls: Counter[tuple[int, int]] = Counter()

    def batch_norm(self, call: NormCall, moments: Moments) -> None:
        """What torch writes after a batch norm of all samples, at once.

        Args:
            call: whose buffers are written, where it has some.
            moments: of all samples.
        """
        self._write(call, moments.mean, moments.variance(correction=1))

    def instance_norm(self, call: NormCall, run: Run) -> Tensor:
        """The output of one run's call; nothing is written yet."""
        key = (id(call.running_mean), run.number)
        self._calls[key] += 1
        fresh = with_fresh_buffers(call)  # which get the means over the samples
        output = native_instance_norm(fresh)
        self._add((key[0], self._calls[key]), call, fresh)
        return output

    def _add(self, key: tuple[int, int], call: NormCall, fresh: NormCall) -> None:
        assert fresh.running_mean is not None  # noqa: S101
        assert fresh.running_var is not None  # noqa: S101
        samples = call.input.shape[0]
        mean, variance = fresh.running_mean.double() * samples, fresh.running_var.double() * samples
        if key in self._sums:
            sums = self._sums[key]
            self._sums[key] = _Sums(
                call, sums.samples + samples, sums.mean + mean, sums.variance + variance
            )
        else:
            self._sums[key] = _Sums(call, samples, mean, variance)

    def finish(self) -> None:
        """All runs have come to their end: write the updates of instance norms, in order."""
        for sums in self._sums.values():
            self._write(sums.call, sums.mean / sums.samples, sums.variance / sums.samples)

    def _write(self, call: NormCall, mean: Tensor, variance: Tensor) -> None:
        """New = (1 - momentum) running + momentum observed."""
        with torch.no_grad():
            for running, observed in ((call.running_mean, mean), (call.running_var, variance)):
                if running is not None:
                    self.written.add(id(running))
                    running.copy_((1 - call.momentum) * running.double() + call.momentum * observed)
