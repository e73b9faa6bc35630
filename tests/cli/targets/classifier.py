"""As people write it: a network on a backbone from the file beside it, and what gives them."""

import dataclasses
import pickle
import sys

import torch
from backbones import build_backbone
from torch import nn
from torch.nn import functional as F


@dataclasses.dataclass
class Options:
    """Dataclasses look their module up while they are made."""

    classes: int = 3
    words: "tuple[str, ...]" = ()


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.backbone = build_backbone()
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        from backbones import pool  # found only while the folder is on sys.path

        return self.head(pool(self.backbone(x)))


def compute_loss(model, batch):
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def build():
    model = pickle.loads(pickle.dumps(Net(Options().classes)))
    model.backbone.requires_grad_(False)
    return model


def setup():
    model = build()
    return {
        "model": model,
        "frozen": "backbone",
        "optimizer": torch.optim.AdamW(model.head.parameters(), lr=1e-3),
        "batch": (torch.randn(2, 3, 8, 8), torch.tensor([0, 2])),
        "compute_loss": compute_loss,
        "dataset": [0, 1, 2],
    }


def build_for(classes, *, width, depth=1, **rest):
    return Net(classes)


class NeedsClasses(Net):
    def __init__(self, classes):
        super().__init__(classes)


async def build_later():
    return Net()


def build_wrapped_later():
    return build_later()


model = build()
words = list(sys.argv)
name_in_import = __name__
