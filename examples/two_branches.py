"""Train one branch of a network while the other must not change.

Run it: python examples/two_branches.py
"""

from __future__ import annotations

import copy

import torch
from torch.nn import functional

import frostline as fl
from frostline.demo.digits import load_digits
from frostline.demo.nets import TwoBranches


def train_second_branch(model: TwoBranches, images: torch.Tensor, odd: torch.Tensor) -> None:
    """An ordinary loop: nothing in it knows that something is frozen."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    model.train()
    for x, y in zip(images.split(64), odd.split(64), strict=True):
        optimizer.zero_grad()
        functional.cross_entropy(model(x, branch="second"), y).backward()
        optimizer.step()


def pretrained() -> TwoBranches:
    """Stands for the checkpoint that you would load: trained on the digits for a moment."""
    torch.manual_seed(0)
    model, digits = TwoBranches(), load_digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for x, y in zip(digits.images.split(64), digits.labels.split(64), strict=True):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def main() -> None:
    """Once by flag only, once with the hold."""
    digits = load_digits()
    images, odd = digits.inverted().images, digits.labels % 2
    model = pretrained()
    model.trunk.requires_grad_(False)
    model.main.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())

    by_flag = copy.deepcopy(model)
    train_second_branch(by_flag, images, odd)
    batch = (digits.images, digits.labels)
    print(fl.attribute(before, by_flag.state_dict(), by_flag, batch), end="\n\n")

    part = fl.freeze(model, fl.FLAGGED)
    train_second_branch(model, images, odd)
    part.assert_unchanged()
    print(part)
    after = model.state_dict()
    frozen = [name for name in before if not name.startswith("second.")]
    assert all(torch.equal(after[name], before[name]) for name in frozen)


if __name__ == "__main__":
    main()
