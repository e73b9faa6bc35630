"""Accelerate: a loop of one's own over prepared objects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator
from torch import nn

import frostline as fl
from tests.everything import contents
from tests.zoo import ZOO, labelled

HEAD = {"fc.weight", "fc.bias"}


def train(model: nn.Module, prepared: Callable[[nn.Module], None] = lambda model: None) -> set[str]:
    """Two epochs, train() and eval() in each; `prepared` sees the model after `prepare`."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    data = torch.utils.data.DataLoader([labelled(4, 3, 32, 32)()] * 2, batch_size=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    wrapped, optimizer, data = accelerator.prepare(model, optimizer, data)
    prepared(wrapped)
    before = contents(model)
    for _ in range(2):
        wrapped.train()
        for x, y in data:
            with accelerator.accumulate(wrapped):
                accelerator.backward(nn.functional.cross_entropy(wrapped(x), y))
                optimizer.step()
                optimizer.zero_grad()
        wrapped.eval()
    after = contents(model)
    return {name for name in before if before[name] != after[name]}


def freeze_by_flag(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in HEAD)


def test_control_by_flag_only_sixty_tensors_drift() -> None:
    model = ZOO["resnet18"].build()
    freeze_by_flag(model)
    model.eval()
    assert len(train(model) - HEAD) == 60


@pytest.mark.parametrize("flags_first", [False, True])
def test_held_before_prepare(flags_first: bool) -> None:
    model = ZOO["resnet18"].build()
    if flags_first:
        freeze_by_flag(model)
        part = fl.freeze(model, fl.FLAGGED)
    else:
        part = fl.freeze(model, exclude="fc")
    assert train(model) == HEAD
    assert part.ok


def test_held_after_prepare() -> None:
    model = ZOO["resnet18"].build()
    assert train(model, lambda wrapped: fl.freeze(wrapped, exclude="fc")) == HEAD
    assert fl.parts(model)[0].ok


def test_unwrapping_keeps_the_hold() -> None:
    model = ZOO["resnet18"].build()
    fl.freeze(model, exclude="fc")
    accelerator = Accelerator(cpu=True)
    unwrapped = accelerator.unwrap_model(accelerator.prepare(model))
    assert unwrapped is model
    assert fl.parts(unwrapped) == fl.parts(model) != []
