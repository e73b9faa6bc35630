"""Batch norm with the statistics of another run, so that no sample sees the others through it."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.lockstep.norm_calls import NormCall, NormCalls

Statistics: TypeAlias = tuple[Tensor, Tensor]  # mean and variance, [channels]


class JoinedNorms(NormCalls):
    """Every norm that looks across the batch normalises with statistics that do not depend on it.

    They are those of the first run, by the order of the calls. So what still couples samples does
    not do so through a call that can be joined.

    Args:
        model: whose norms are called.
        recorded: statistics of the calls; a run adds to them where it makes more.
    """

    def __init__(self, model: nn.Module, recorded: list[Statistics]) -> None:
        super().__init__(model)
        self._recorded = recorded
        self._calls = 0

    def batch_norm(self, call: NormCall) -> Tensor:
        index, self._calls = self._calls, self._calls + 1
        if index == len(self._recorded):
            self._recorded.append(_statistics(call))
        mean, variance = self._recorded[index]
        if mean.shape != call.input.shape[1:2] or mean.device != call.input.device:
            return super().batch_norm(call)  # this run has taken another way
        return F.batch_norm(
            call.input, mean, variance, call.weight, call.bias, False, call.momentum, call.eps
        )


def _statistics(call: NormCall) -> Statistics:
    x = call.input.detach()
    across = [0, *range(2, x.dim())]
    variance, mean = torch.var_mean(x.float() if x.itemsize < 4 else x, across, correction=0)
    like = next((t for t in (call.running_mean, call.weight) if t is not None), x)
    return mean.to(like.dtype), variance.to(like.dtype)
