"""LBFGS calls the model several times within one step."""

import torch
from torch import nn


def fit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[:2].requires_grad_(False)
    optimizer = torch.optim.LBFGS(model[2].parameters(), max_iter=3)
    x, y = torch.randn(16, 3), torch.randn(16, 1)

    def closure():
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)


fit()
