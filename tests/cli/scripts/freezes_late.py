"""Warms up, then freezes the trunk although the optimizer has it: momentum moves it on."""

import torch
from torch import nn

model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(6):
    if step == 3:
        model[0].requires_grad_(False)
    optimizer.zero_grad(set_to_none=False)
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
