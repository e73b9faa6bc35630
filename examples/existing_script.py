"""A script as people write it, with its freeze made to hold by one line.

python examples/existing_script.py
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import frostline as fl


class Classifier(nn.Module):
    """A backbone that somebody pretrained, and a head for a new task."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout2d(0.2)
        )
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x).mean((2, 3)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=2)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = Classifier()
    model(torch.randn(64, 1, 8, 8))  # stands for pretraining: the norm has seen data
    for parameter in model.backbone.parameters():
        parameter.requires_grad = False

    part = fl.freeze(model, fl.FLAGGED)  # the one new line: make the freeze hold

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for _ in range(arguments.epochs):
        model.train()
        for _ in range(5):
            x, y = torch.randn(16, 1, 8, 8) + 1, torch.randint(2, (16,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    part.assert_unchanged()
    print(part)


if __name__ == "__main__":
    main()
