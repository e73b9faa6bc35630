"""Two branches on one trunk: the trunk and the first branch are done, the second one trains.

frostline audit examples/targets/two_branches.py:setup

The mistakes are those of the document that began this project. The loop freezes by flag and calls
`model.train()` every epoch; the optimizer was made before the freeze, over everything.

The audit says:
  FRZ101 error  both norms of the trunk are in training mode: each forward writes their statistics,
                so that the finished branch gives other answers on the same images.
  FRZ201 info   frozen parameters in the optimizer: without a gradient it leaves them alone.
  FRZ602 info   the trunk gives other features in training mode than in evaluation.
`fl.freeze(model, fl.FLAGGED)`, after the two flags, mends it.
"""

import torch
from torch import nn
from torch.nn import functional as F


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        )  # fmt: skip
        self.first = nn.Sequential(nn.Linear(576, 84), nn.ReLU(), nn.Linear(84, 10))
        self.second = nn.Sequential(nn.Linear(576, 84), nn.ReLU(), nn.Linear(84, 5))

    def forward(self, images):
        features = self.trunk(images)
        return self.first(features), self.second(features)


def compute_loss(model, batch):
    images, labels = batch
    _, scores = model(images)
    return F.cross_entropy(scores, labels)


def setup():
    torch.manual_seed(0)
    model = TwoBranches()
    model(torch.randn(64, 1, 32, 32))  # stands for the checkpoint: the norms have seen data
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.trunk.requires_grad_(False)
    model.first.requires_grad_(False)
    model.train()
    batch = torch.randn(8, 1, 32, 32), torch.randint(5, (8,))
    return {"model": model, "optimizer": optimizer, "batch": batch, "compute_loss": compute_loss}
