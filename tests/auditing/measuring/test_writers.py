"""Who wrote a tensor in a step, in words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from frostline.auditing.measuring import measure
from frostline.auditing.step import Step
from tests.auditing.measuring.steps import X, net


def writer(step: Step, tensor: Tensor) -> str:
    return step.writers[id(tensor)]


def test_writers_are_named() -> None:
    model = net()
    step = measure(model, torch.optim.AdamW(model.parameters()), X, None, train=False)
    assert writer(step, model[1].running_mean) == "native_batch_norm in 1"
    assert writer(step, model[1].num_batches_tracked) == "add_ in 1"
    assert writer(step, model[0].weight) == "AdamW.step"


def test_a_writer_in_a_hook_of_the_optimizer() -> None:
    model = net().eval()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)

    def shrink(*_: Any) -> None:
        model[0].weight.data.mul_(0.5)

    optimizer.register_step_post_hook(shrink)
    step = measure(model, optimizer, X, None, train=False)
    assert writer(step, model[0].weight) == "mul_ in optimizer.step()"


class ByNumpy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("kept", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        self.kept.numpy().fill(5)
        return self.layer(x)


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=False))


def test_a_writer_that_runs_again() -> None:
    model = Recomputed()
    step = measure(model, None, X, None, train=False)
    assert step.calls == {id(model.block[1]): 2}
    assert writer(step, model.block[1].running_mean) == (
        "native_batch_norm in block.1, native_batch_norm in block.1, in the backward"
    )


def test_no_writer_where_nothing_was_seen() -> None:
    model = ByNumpy()
    step = measure(model, None, X, None, train=False)
    assert writer(step, model.kept) == ""
