"""Give a pretrained net the running statistics of another domain, look, and take them back.

python examples/recalibrate.py
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import frostline as fl


def block(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, padding=1), nn.BatchNorm2d(width_out), nn.ReLU()
    )


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        block(1, 8),
        block(8, 8),
        block(8, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    for _ in range(30):
        model(torch.randn(32, 1, 16, 16))  # stands for training: the norms have seen data

    darker = 0.3 * torch.randn(500, 1, 16, 16) - 1
    loader = DataLoader(TensorDataset(darker), batch_size=32)  # in order; the last batch is short

    result = fl.recalibrate(model, loader)
    print(result)

    model.eval()
    with torch.no_grad():
        features = model[0][0](darker)
    norm = model[0][1]
    assert torch.allclose(norm.running_mean, features.mean((0, 2, 3)), atol=1e-5)

    result.undo()
    print(f"\nback again: running_mean is {norm.running_mean.abs().mean():.3f} on average")


if __name__ == "__main__":
    main()
