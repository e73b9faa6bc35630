"""Before a run: what leaks, why, what a step will take, and groups for the optimizer.

python examples/look_before_training.py
"""

from __future__ import annotations

import torch
from torch import nn

import frostline as fl


class Classifier(nn.Module):
    """A backbone that was trained before, and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Flatten(), nn.LayerNorm(512), nn.Linear(512, 5))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.head(self.backbone(images))
        return features


def main() -> None:
    torch.manual_seed(0)
    model = Classifier()
    images = torch.randn(32, 3, 8, 8)
    model(images)  # stands for pretraining: the norms have seen data
    model.backbone.requires_grad_(False)  # the freeze that the script has already

    print(fl.summary(model, batch=images))  # two norms leak
    print()
    print(fl.explain(model, "backbone"))  # why, and the line that holds them

    part = fl.freeze(model, fl.FLAGGED)
    assert fl.explain(model).leaky == []

    optimizer = torch.optim.AdamW(fl.param_groups(model, 1e-3, weight_decay=0.05))
    print()
    print(fl.summary(model, optimizer=optimizer, batch=images))
    for _ in range(3):
        model(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    part.assert_unchanged()


if __name__ == "__main__":
    main()
