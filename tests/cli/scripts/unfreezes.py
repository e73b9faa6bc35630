"""Gradual unfreezing by flags: what becomes trainable may change."""

import torch
from torch import nn

model = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("low", "mid", "head")})
model["low"].requires_grad_(False)
model["mid"].requires_grad_(False)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for epoch in range(3):
    if epoch == 1:
        model["mid"].requires_grad_(True)
    for _ in range(2):
        x = torch.randn(8, 4)
        optimizer.zero_grad()
        for layer in model.values():
            x = layer(x).tanh()
        x.square().mean().backward()
        optimizer.step()
