"""Every way to call a norm that looks across the batch is seen, and no other call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline.errors import AccumulationError
from frostline.lockstep.norm_calls import NormCall, NormCalls

X = torch.randn(4, 3, 5)
MEAN, VAR, WEIGHT, BIAS = torch.zeros(3), torch.ones(3), torch.rand(3), torch.rand(3)


class Recording(NormCalls):
    def __init__(self, *models: nn.Module) -> None:
        super().__init__(*models)
        self.calls: list[NormCall] = []
        self.instances: list[NormCall] = []
        self.counters: list[Tensor] = []

    def batch_norm(self, call: NormCall) -> Tensor:
        self.calls.append(call)
        return super().batch_norm(call)

    def instance_norm(self, call: NormCall) -> Tensor:
        self.instances.append(call)
        return super().instance_norm(call)

    def counted(self, counter: Tensor, add: Callable[[], Tensor]) -> Tensor:
        self.counters.append(counter)
        return super().counted(counter, add)


ATEN = torch.ops.aten.batch_norm
CALLS: dict[str, Callable[[bool], Any]] = {
    "functional": lambda t: F.batch_norm(X, MEAN, VAR, WEIGHT, BIAS, t, 0.2, 1e-3),
    "by name": lambda t: F.batch_norm(
        eps=1e-3, training=t, input=X, running_var=VAR, running_mean=MEAN, bias=BIAS,
        momentum=0.2, weight=WEIGHT,
    ),
    "torch": lambda t: torch.batch_norm(X, WEIGHT, BIAS, MEAN, VAR, t, 0.2, 1e-3, False),
    "packet": lambda t: ATEN(X, WEIGHT, BIAS, MEAN, VAR, t, 0.2, 1e-3, False),
    "overload": lambda t: ATEN.default(X, WEIGHT, BIAS, MEAN, VAR, t, 0.2, 1e-3, False),
}  # fmt: skip


@pytest.mark.parametrize("way", CALLS)
def test_arguments_are_read(way: str) -> None:
    with Recording() as mode:
        out = CALLS[way](True)
    (call,) = mode.calls
    tensors = (call.input, call.running_mean, call.running_var, call.weight, call.bias)
    assert all(a is b for a, b in zip(tensors, (X, MEAN, VAR, WEIGHT, BIAS), strict=True))
    assert (call.momentum, call.eps) == (0.2, 1e-3)
    torch.testing.assert_close(out, F.batch_norm(X, None, None, WEIGHT, BIAS, True, 0.2, 1e-3))


@pytest.mark.parametrize("way", CALLS)
def test_running_statistics_are_no_matter_of_the_batch(way: str) -> None:
    with Recording() as mode:
        CALLS[way](False)
    assert mode.calls == []


def test_modules_in_all_modes() -> None:
    tracked, untracked = nn.BatchNorm1d(3), nn.BatchNorm1d(3, track_running_stats=False)
    with Recording(tracked) as mode:
        for norm in (tracked, untracked):
            norm.train()(X)
            norm.eval()(X)
    assert [call.running_mean is not None for call in mode.calls] == [True, False, False]
    assert [counter is tracked.num_batches_tracked for counter in mode.counters] == [True]


def test_instances_that_are_tracked() -> None:
    with Recording() as mode:
        nn.InstanceNorm1d(3)(X)
        nn.InstanceNorm1d(3, track_running_stats=True)(X)
        nn.InstanceNorm1d(3, track_running_stats=True).eval()(X)
        F.layer_norm(X, (5,))
        F.group_norm(X, 3)
    assert len(mode.instances) == 1
    assert mode.calls == []


@pytest.mark.parametrize(
    "below",
    [
        lambda: torch.native_batch_norm(X, None, None, None, None, True, 0.1, 1e-5),
        lambda: torch.ops.aten._native_batch_norm_legit(X, None, None, MEAN, VAR, True, 0.1, 1e-5),
    ],
)
def test_kernels_below_are_refused(below: Callable[[], Any]) -> None:
    with Recording(), pytest.raises(AccumulationError, match=r"functional\.batch_norm"):
        below()
