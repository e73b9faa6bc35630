"""To be listed by its text: running it fails."""

import torch
from no_such_library import LightningModule
from torch import nn


def parse_args():
    return None


def train(model, /, epochs, lr=0.1, *, log, every=3):
    return model, epochs, lr, log, every


async def stream():
    return None


def make_model(width=64, *sizes, depth=2, **more):
    return width, sizes, depth, more


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()


class Wide(Block):
    pass


class Net(nn.Sequential):
    pass


class Lit(LightningModule):
    pass


class Options:
    pass


first = nn.Linear(2, 1)
second: nn.Module = Net()
model = make_model()
settings = {"model": model, "lr": 0.1}
other_settings = {"lr": 0.1}
options = Options()
optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
