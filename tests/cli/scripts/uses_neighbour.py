"""Imports the file beside it, and runs clean: nothing that is frozen has statistics."""

import torch
from neighbour import build

model = build()
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
for _ in range(3):
    optimizer.zero_grad()
    model(torch.randn(4, 2)).square().mean().backward()
    optimizer.step()
