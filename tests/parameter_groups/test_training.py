"""The groups in training: bit for bit what groups written by hand give."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
)

import frostline as fl
from frostline.parameter_groups import param_groups
from tests.parameter_groups.seen import layout
from tests.zoo import ZOO

FROZEN = ["bert.embeddings", "bert.encoder.layer.0"]


def bert() -> nn.Module:
    return ZOO["bert"].build()


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


def changed(before: dict[str, bytes], after: dict[str, bytes]) -> set[str]:
    # The softmax does not see the bias of a key: its gradient is 0, up to rounding.
    return {n for n in after if after[n] != before[n] and not n.endswith(".key.bias")}


def trained(model: nn.Module) -> set[str]:
    flagged = {name for name, p in model.named_parameters() if p.requires_grad}
    return {name for name in flagged if not name.endswith(".key.bias")}


def train(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    batch = ZOO["bert"].batch()
    for step in range(steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        ZOO["bert"].loss(model, batch).backward()
        optimizer.step()


def by_hand(model: nn.Module, option: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A group for each tensor, from its name: no rule of ours in it."""
    groups = []
    for name, parameter in model.named_parameters():
        if name.startswith(("bert.embeddings.", "bert.encoder.layer.0.")):
            continue
        own: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
        if name.startswith("classifier."):
            own = {"lr": 0.05, "weight_decay": 0.3, **option}
        elif name.startswith("bert.encoder.layer.1.attention."):
            own["lr"] = 0.002
        if name.endswith(".bias") or ".LayerNorm." in name:
            own["weight_decay"] = 0.0
        groups.append({"params": [parameter], **own})
    return groups


OPTIMIZERS: dict[str, tuple[Callable[..., Optimizer], dict[str, Any]]] = {
    "sgd": (lambda groups: SGD(groups, momentum=0.9), {"momentum": 0.5}),
    "adamw": (AdamW, {"betas": (0.8, 0.99)}),
    "adam": (Adam, {"eps": 1e-6}),
    "rmsprop": (RMSprop, {"alpha": 0.9}),
    "nadam": (NAdam, {"momentum_decay": 0.01}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_equal_groups_by_hand(name: str) -> None:
    make, option = OPTIMIZERS[name]
    slow = bert()
    for parameter_name, parameter in slow.named_parameters():
        if parameter_name.startswith(("bert.embeddings.", "bert.encoder.layer.0.")):
            parameter.requires_grad_(False)
    train(slow, make(by_hand(slow, option)), 10)

    model = bert()
    before = bits(model)
    # Dropout draws stay in step with the other model, where only gradients are off.
    part = fl.freeze(model, FROZEN, mode="follow")
    asked = {"bert.encoder.layer.1.attention": 0.002}
    head = {"classifier": {"lr": 0.05, "weight_decay": 0.3, **option}}
    groups = param_groups(model, 0.01, weight_decay=0.1, groups={**asked, **head})
    assert len(groups) == 6
    train(model, make(groups), 10)

    after = bits(model)
    assert after == bits(slow)
    assert part.ok
    assert changed(before, after) == trained(model)


def test_layerwise_steps_equal_rates_by_hand() -> None:
    slow, model = bert(), bert()
    rate = {"embeddings": 0.01 / 8, "layer.0": 0.01 / 4, "layer.1": 0.01 / 2}
    groups = [
        {"params": [p], "lr": next((r for part, r in rate.items() if f".{part}." in name), 0.01)}
        for name, p in slow.named_parameters()
    ]
    train(slow, SGD(groups, momentum=0.9), 10)
    train(model, SGD(param_groups(model, 0.01, layer_decay=0.5), momentum=0.9), 10)
    assert bits(model) == bits(slow)


def test_schedulers_see_each_groups_own_rate() -> None:
    model = bert()
    optimizer = AdamW(param_groups(model, 0.01, layer_decay=0.5, groups={"classifier": 0.08}))
    own = [group["lr"] for group in optimizer.param_groups]
    assert own == [0.01 / 8, 0.01 / 4, 0.01 / 2, 0.01, 0.08]
    scheduler = LambdaLR(optimizer, lambda step: 1 / (step + 1))
    for step in range(3):
        assert [group["lr"] for group in optimizer.param_groups] == [
            r * (1 / (step + 1)) for r in own
        ]
        train(model, optimizer, 1)
        scheduler.step()

    cycle = OneCycleLR(optimizer, max_lr=own, total_steps=10, pct_start=0.5)
    peaks = [0.0] * len(own)
    for _ in range(9):
        peaks = [max(p, g["lr"]) for p, g in zip(peaks, optimizer.param_groups, strict=True)]
        train(model, optimizer, 1)
        cycle.step()
    assert peaks == own


def saved(optimizer: Optimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def test_a_state_dict_goes_and_comes_back() -> None:
    def build(model: nn.Module) -> Optimizer:
        return AdamW(param_groups(model, 0.01, weight_decay=0.1, groups={"classifier": 0.05}))

    model, resumed = bert(), bert()
    optimizer = build(model)
    train(model, optimizer, 3)
    resumed.load_state_dict(model.state_dict())
    again = build(resumed)
    again.load_state_dict(saved(optimizer))
    assert [g["name"] for g in again.param_groups] == [g["name"] for g in optimizer.param_groups]
    train(model, optimizer, 3)
    train(resumed, again, 3)
    assert bits(resumed) == bits(model)


def test_kept_groups_outlive_an_unfreeze() -> None:
    model = bert()
    part = fl.freeze(model, "bert")
    optimizer = AdamW(param_groups(model, 0.01, weight_decay=0.1, frozen="keep"))
    scheduler = LambdaLR(optimizer, lambda step: 1.0)
    train(model, optimizer, 2)
    scheduler.step()
    assert part.ok
    before = bits(model)
    fl.unfreeze(model, "bert.encoder.layer.1")
    train(model, optimizer, 2)
    scheduler.step()
    assert changed(before, bits(model)) == trained(model)
    assert layout(optimizer.param_groups) == layout(
        param_groups(model, 0.01, weight_decay=0.1, frozen="keep")
    )


SCHEDULERS: dict[str, Callable[[Optimizer], LRScheduler]] = {
    "lambda": lambda optimizer: LambdaLR(optimizer, lambda step: 1.0),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.01, total_steps=9),
    "restarts": lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 9),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_group_added_later_breaks_these_schedulers(name: str) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fl.freeze(net, "0")
    optimizer = AdamW(param_groups(net, 0.01))
    scheduler = SCHEDULERS[name](optimizer)
    optimizer.step()
    scheduler.step()
    optimizer.add_param_group({"params": fl.unfreeze(net, "0"), "lr": 0.001})
    with pytest.raises((ValueError, KeyError), match=r"shorter|_lr"):
        scheduler.step()


def test_lbfgs_takes_one_group_and_says_so_itself() -> None:
    model = bert()
    assert len(LBFGS(param_groups(model, 0.01)).param_groups) == 1
    with pytest.raises(ValueError, match="LBFGS doesn't support per-parameter options"):
        LBFGS(param_groups(model, 0.01, groups={"classifier": 0.05}))
