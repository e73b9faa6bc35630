"""`as_code()`: the text runs by itself and holds the same bytes in plain PyTorch."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from tests.freezing.content import content, moved
from tests.zoo import ZOO, seeded


def run(code: str, model: nn.Module) -> nn.Module:
    namespace: dict[str, Any] = {}
    exec(compile(code, "as_code", "exec"), namespace)
    return namespace["freeze"](model)


def train(model: nn.Module, name: str) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(3):
        model.train()
        optimizer.zero_grad()
        with seeded(step), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ZOO[name].loss(model, ZOO[name].batch()).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ZOO)
def test_the_text_holds_what_the_part_holds(name: str) -> None:
    model = ZOO[name].build()
    part = fl.freeze(model, ZOO[name].backbone)
    code, covered = part.as_code(), set(part.tensors)
    assert "frostline" not in code

    fresh = ZOO[name].build()
    assert run(code, fresh) is fresh
    before = content(fresh)
    train(fresh, name)
    changed = set(moved(before, fresh))
    assert changed, "control: the rest trains"
    assert changed & covered == set()


@pytest.mark.parametrize("name", ["two_branches", "resnet18"])
def test_the_text_and_the_part_train_the_rest_alike(name: str) -> None:
    model, fresh = ZOO[name].build(), ZOO[name].build()
    part = fl.freeze(model, ZOO[name].backbone)
    run(part.as_code(), fresh)
    train(model, name)
    train(fresh, name)
    assert content(model) == content(fresh)


def test_by_flags_alone_the_same_model_drifts() -> None:
    """Control: the text does more than its first loop."""
    model, fresh = ZOO["resnet18"].build(), ZOO["resnet18"].build()
    part = fl.freeze(model, ZOO["resnet18"].backbone)
    covered = set(part.tensors)
    for name, parameter in fresh.named_parameters():
        parameter.requires_grad_(name not in covered)
    before = content(fresh)
    train(fresh, "resnet18")
    assert any(name.endswith("running_mean") for name in set(moved(before, fresh)) & covered)
