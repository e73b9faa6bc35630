"""Known ways in which freezing fails that belong to no single mechanism; docs/coverage.md asks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

import frostline as fl
from tests.freezing.content import content, moved
from tests.freezing.kinds import KINDS, build, step
from tests.zoo import live


def test_a_batch_of_one_runs_in_training_mode() -> None:
    """A norm in training mode cannot normalise one value with itself."""
    net = live(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))).train()
    one = torch.randn(1, 4)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        net(one)
    part = fl.freeze(net, "1")
    net.train()(one).sum().backward()
    assert part.ok


def test_a_bias_that_a_step_hook_balances_is_named() -> None:
    """Mixtures of experts are balanced outside of forward, frozen or not."""
    net, x = build("MoE bias"), KINDS["MoE bias"].inputs()
    optimizer = SGD([p for p in net.parameters() if p is not net.part.e_score_correction_bias])

    def balance(*_: object) -> None:
        with torch.no_grad():
            net.part.e_score_correction_bias += 0.01

    optimizer.register_step_pre_hook(balance)
    part = fl.freeze(net, "part")
    step(net.train(), x, optimizer)
    changes = [(change.name, change.kind) for change in part.changes()]
    assert changes == [("part.e_score_correction_bias", "value")]


def test_a_freeze_inside_of_a_step_comes_in_time() -> None:
    """Some schedules freeze in the optimizer's hooks, when gradients are there already."""
    net, x = build("BatchNorm1d"), KINDS["BatchNorm1d"].inputs()
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    step(net.train(), x)
    before = content(net.part)

    def freeze(*_: object) -> None:
        fl.freeze(net, "part")

    optimizer.register_step_pre_hook(freeze)
    optimizer.step()
    assert moved(before, net.part) == []


def test_an_adapter_merged_and_unmerged_is_named() -> None:
    net = nn.Linear(16, 16).bfloat16()
    part = fl.freeze(net)
    delta = torch.randn(16, 16, dtype=torch.bfloat16) / 8
    before = content(net)
    with torch.no_grad():
        net.weight += delta
        net.weight -= delta
    assert moved(before, net) == ["weight"]
    assert [(change.name, change.kind) for change in part.changes()] == [("weight", "value")]


def test_a_frozen_quantised_model_can_be_moved_and_steps() -> None:
    """torch swaps wrapper subclasses, and swaps nothing that anybody refers to weakly."""
    quantization = pytest.importorskip("torchao.quantization")
    net = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 2))
    quantization.quantize_(net[0], quantization.Int8WeightOnlyConfig())
    part = fl.freeze(net, "0")
    weight = net[0].weight
    net.to("cpu")
    assert net[0].weight is weight
    assert part.changes() == []
    optimizer = SGD(net.parameters(), lr=0.1)
    weight.grad = torch.ones(32, 32)
    net.train()(torch.randn(4, 32)).sum().backward()
    optimizer.step()
    assert weight.grad is None
    assert part.changes() == []
