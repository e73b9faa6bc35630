"""Writes that nothing in a process can stop: each is named, with the tensor and how much."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import FrozenStateChanged
from tests.freezing.kinds import KINDS, Net, build, step

KIND = "BatchNorm2d"


@dataclass(frozen=True)
class Write:
    """A write past every flag.

    Attributes:
        do: the write.
        names: what `changes()` names, with the number of changed elements.
    """

    do: Callable[[Net], object]
    names: dict[str, int]


def _data(net: Net) -> None:
    net.part[0].weight.data += 1


def _data_assigned(net: Net) -> None:
    net.part[0].weight.data = torch.zeros_like(net.part[0].weight)


def _buffer(net: Net) -> None:
    net.part[1].running_mean[1] = 7.0


def _detached(net: Net) -> None:
    net.part[0].bias.detach()[0] = 7.0


def _no_grad(net: Net) -> None:
    with torch.no_grad():
        net.part[0].bias.add_(1)


def _numpy(net: Net) -> None:
    net.part[1].running_var.numpy()[0] += 1


def _numpy_of_parameter(net: Net) -> None:
    net.part[1].bias.detach().numpy()[:2] += 1


def _storage(net: Net) -> None:
    net.part[0].bias.untyped_storage()[0] ^= 1


def _view(net: Net) -> None:
    net.part[1].weight.detach().view(3, 1)[2, 0] = 9.0


def _memoryview(net: Net) -> None:
    tensor = net.part[1].num_batches_tracked
    ctypes.memmove(tensor.data_ptr(), (ctypes.c_int64 * 1)(-5), 8)


def _swap_two(net: Net) -> None:
    rows = net.part[0].weight.data
    rows[[0, 1]] = rows[[1, 0]]


def _negative_zero(net: Net) -> None:
    net.part[1].running_mean[0] = -0.0


def _not_a_number(net: Net) -> None:
    net.part[1].running_mean.fill_(float("nan"))


def _exponential_average(net: Net) -> None:
    """A teacher's update, which people write with `.data` and forget about."""
    student = build(KIND, fresh=True).part
    for mine, theirs in zip(net.part.parameters(), student.parameters(), strict=True):
        mine.data.lerp_(theirs.data + 1, 0.1)


WRITES = {
    ".data +=": Write(_data, {"part.0.weight": 6}),
    ".data =": Write(_data_assigned, {"part.0.weight": 6}),
    "a buffer's element": Write(_buffer, {"part.1.running_mean": 1}),
    "detach()": Write(_detached, {"part.0.bias": 1}),
    "under no_grad": Write(_no_grad, {"part.0.bias": 3}),
    "numpy of a buffer": Write(_numpy, {"part.1.running_var": 1}),
    "numpy of a parameter": Write(_numpy_of_parameter, {"part.1.bias": 2}),
    "one bit of the storage": Write(_storage, {"part.0.bias": 1}),
    "a view": Write(_view, {"part.1.weight": 1}),
    "memory": Write(_memoryview, {"part.1.num_batches_tracked": 1}),
    "two rows exchanged": Write(_swap_two, {"part.0.weight": 4}),
    "NaN": Write(_not_a_number, {"part.1.running_mean": 3}),
    "moving average": Write(
        _exponential_average,
        {"part.0.weight": 6, "part.0.bias": 3, "part.1.weight": 3, "part.1.bias": 3},
    ),
}


@pytest.mark.parametrize("write", WRITES)
def test_write_is_named(write: str) -> None:
    net = build(KIND)
    part = fl.freeze(net, "part")
    assert part.changes() == []
    WRITES[write].do(net)
    changes = part.changes()
    assert {c.name: c.changed_elements for c in changes} == WRITES[write].names
    assert {(c.kind, c.severity) for c in changes} == {("value", "drift")}
    assert not part.ok
    with pytest.raises(FrozenStateChanged) as caught:
        part.assert_unchanged()
    # Not the changes themselves: the largest difference to NaN is NaN.
    assert [c.name for c in caught.value.changes] == list(WRITES[write].names)
    for name in WRITES[write].names:
        assert name in str(caught.value)


def test_minus_zero_is_not_zero() -> None:
    net = build(KIND)
    net.part[1].running_mean[0] = 0.0
    part = fl.freeze(net, "part")
    _negative_zero(net)
    ((name, elements),) = [(c.name, c.changed_elements) for c in part.changes()]
    assert (name, elements) == ("part.1.running_mean", 1)


def test_not_a_number_equals_itself() -> None:
    net = build(KIND)
    _not_a_number(net)
    part = fl.freeze(net, "part")
    assert part.changes() == []


@pytest.mark.parametrize("write", WRITES)
def test_same_write_to_the_trainable_rest_is_nothing(write: str) -> None:
    other = build(KIND)
    both = nn.ModuleList([build(KIND), other])
    part = fl.freeze(both, "0")
    WRITES[write].do(other)
    assert part.changes() == []


def test_alias_made_before_the_freeze_is_named_too() -> None:
    net = build(KIND)
    alias: np.ndarray = net.part[1].running_mean.numpy()
    part = fl.freeze(net, "part")
    alias += 1.0
    (change,) = part.changes()
    assert (change.name, change.changed_elements) == ("part.1.running_mean", 3)
    assert change.max_abs == pytest.approx(1.0, rel=1e-6)


def test_convert_sync_batchnorm_makes_new_objects_and_is_refused_at_the_next_step() -> None:
    net, x = build(KIND), KINDS[KIND].inputs()
    part = fl.freeze(net, "part")
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    assert isinstance(net.part[1], nn.SyncBatchNorm)
    net.train()
    assert [(c.name, c.kind) for c in part.changes() if c.severity == "drift"] == [
        ("part.1", "mode")
    ]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(FrozenStateChanged, match=r"part\.1 was replaced .*part\.undo\(\)"):
        step(net, x, optimizer)
    part.undo()
    again = fl.freeze(net, "part")
    step(net.train(), x, optimizer)
    assert again.changes() == []


def test_convert_sync_batchnorm_before_the_freeze_is_held() -> None:
    net, x = build(KIND), KINDS[KIND].inputs()
    net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
    part = fl.freeze(net, "part")
    step(net.train(), x, torch.optim.SGD(net.parameters(), lr=0.1))
    assert part.changes() == []


def test_requires_grad_switched_on_again_is_named_and_not_undone() -> None:
    net = build(KIND)
    part = fl.freeze(net, "part")
    net.part[0].weight.requires_grad_(True)
    net.train()
    assert [(c.name, c.kind, c.severity) for c in part.changes()] == [
        ("part.0.weight", "requires_grad", "drift")
    ]
    assert net.part[0].weight.requires_grad is True
    net.part[0].weight.requires_grad_(False)
    assert part.changes() == []


def test_class_taken_away_is_named() -> None:
    net = build(KIND)
    part = fl.freeze(net, "part")
    net.part[1].__class__ = nn.BatchNorm2d
    net.train()
    (change,) = part.changes()
    assert (change.name, change.kind) == ("part.1", "mode")
    assert "class" in change.cause
