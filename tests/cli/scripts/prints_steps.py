"""A script that says on stderr how far it is; with `later`, what is frozen comes second."""

# ruff: noqa: T201

import sys
from collections import OrderedDict

import torch
from torch import nn


def train(net: nn.Module, step: int) -> None:
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    print(f"step {step}", file=sys.stderr)


second = nn.Sequential(OrderedDict(backbone=nn.Linear(2, 2), head=nn.Linear(2, 1)))
second.backbone.requires_grad_(False)
first = nn.Linear(2, 2) if "later" in sys.argv else second
train(first, 1)
train(second, 2)
