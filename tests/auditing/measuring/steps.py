"""A small net, and the names of what a measured step changes in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from frostline._names import named_tensors
from frostline.auditing.measuring import measure
from tests.zoo import live, seeded

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def net(momentum: float | None = 0.1) -> nn.Sequential:
    with seeded(0):
        norm = nn.BatchNorm1d(4, momentum=momentum)
        return live(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 2)))


def names(model: nn.Module, keys: Any) -> set[str]:
    return {entry.name for entry in named_tensors(model) if id(entry.tensor) in keys}


def changed(model: nn.Module, optimizer: Optimizer | None = None, **given: Any) -> set[str]:
    train, loss = given.get("train", False), given.get("loss")
    return names(model, measure(model, optimizer, X, loss, train=train).changed)
