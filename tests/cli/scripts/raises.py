"""Fails in its second step, within a function."""

import torch
from torch import nn

model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
model[:2].requires_grad_(False)
optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)


def train(step):
    model(torch.randn(4, 2)).mean().backward()
    optimizer.step()
    if step == 1:
        raise RuntimeError("out of luck")


for step in range(5):
    train(step)
