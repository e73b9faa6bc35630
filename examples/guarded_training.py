"""A callback that writes to the frozen backbone, named while it trains, and put right.

python examples/guarded_training.py
"""

from __future__ import annotations

import warnings

import torch
from torch import nn
from torch.nn import functional as F

import frostline as fl


def clip_weights(model: nn.Module) -> None:
    """Copied from somewhere: it means the head and writes to everything."""
    for parameter in model.parameters():
        parameter.data.clamp_(-0.1, 0.1)


def main() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU())
    model = nn.Sequential(backbone, nn.Linear(32, 3))
    model.train()(torch.randn(256, 8))  # stands for pretraining: the norm has seen data
    part = fl.freeze(model, "0")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def step() -> None:
        x, y = torch.randn(16, 8), torch.randint(3, (16,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fl.errors.FrostlineWarning)  # the report has it all
        with fl.guard(part, on_change="restore", pinpoint=True) as guard:
            step()
            clip_weights(model)
            step()
            step()

    print(guard.report)
    assert part.changes() == [], "restored to the bit"
    assert not guard.report.ok, "but something did write"
    assert guard.report.changes[0].culprit is not None


if __name__ == "__main__":
    main()
