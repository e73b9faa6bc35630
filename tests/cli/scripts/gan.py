"""Two models, two optimizers that take turns, and a frozen feature network with a norm."""

# ruff: noqa: T201

import torch
from torch import nn

torch.manual_seed(0)
features = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4))
features.requires_grad_(False)


class Generator(nn.Sequential):
    pass


class Discriminator(nn.Sequential):
    pass


G = Generator(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
D = Discriminator(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
g_opt = torch.optim.Adam(G.parameters(), lr=1e-3)
d_opt = torch.optim.Adam(D.parameters(), lr=1e-3)
for _ in range(3):
    d_opt.zero_grad()
    (D(features(G(torch.randn(8, 3)).detach())) - D(features(torch.randn(8, 2)))).mean().backward()
    d_opt.step()
    g_opt.zero_grad()
    D(features(G(torch.randn(8, 3)))).mean().backward()
    g_opt.step()
print("trained both")
