"""The smallest case: all parameters frozen, nothing trained, and another answer each time."""

# ruff: noqa: T201

import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2))
for p in net.parameters():
    p.requires_grad = False
fixed = torch.randn(1, 1, 8, 8)
for epoch in range(3):
    net.train()
    net(torch.randn(4, 1, 8, 8))
    net.eval()
    print(epoch, net(fixed).sum().item())
