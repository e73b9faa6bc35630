"""Gives what is no model, each in its own way."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

net = nn.Linear(2, 1)
other = nn.Linear(2, 1)
criterion = nn.CrossEntropyLoss()


def compute_loss(model, batch):
    return model(batch).sum()


class Plain:
    """No module."""


number = 3
none = None
plain_class = Plain
Linear = nn.Linear


def nothing():
    net.zero_grad()


def pair():
    return net, torch.optim.SGD(net.parameters(), 0.1)


def model_class():
    return nn.ReLU


def function():
    return nothing


def state_dict():
    return net.state_dict()


no_model = {"optimizer": torch.optim.SGD(net.parameters(), 0.1)}
empty = {}
model_is_none = {"model": None}
misspelt = {"model": net, "optimiser": None}
numbered = {"model": net, 1: 2}
optimizer_class = {"model": net, "optimizer": torch.optim.SGD}
optimizers = {"model": net, "optimizer": [torch.optim.SGD(net.parameters(), 0.1)]}
of_another = {"model": net, "optimizer": torch.optim.SGD(other.parameters(), 0.1)}
loss_is_a_number = {"model": net, "compute_loss": 0.5}
criterion_object = {"model": net, "compute_loss": criterion}
criterion_class = {"model": net, "compute_loss": nn.CrossEntropyLoss}
criterion_function = {"model": net, "compute_loss": F.cross_entropy}
criterion_partial = {"model": net, "compute_loss": partial(F.cross_entropy, reduction="sum")}
loss_of_one = {"model": net, "compute_loss": lambda outputs: outputs.sum()}
loss_of_three = {"model": net, "compute_loss": lambda model, inputs, labels: labels}

# These are right.
both = torch.optim.SGD([*net.parameters(), *other.parameters()], 0.1)
of_both = {"model": net, "optimizer": both}
all_none = {"model": net, "frozen": None, "optimizer": None, "batch": None, "compute_loss": None}
loss_with_default = {"model": net, "compute_loss": lambda model, batch, scale=1: scale}
all_right = {"model": net, "compute_loss": compute_loss}
loss_partial = {"model": net, "compute_loss": partial(compute_loss)}
build_partial = partial(nn.Linear, 2, 1)
