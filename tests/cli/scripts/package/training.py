"""To be run as a module: python -m package.training."""

# ruff: noqa: T201

import sys

import torch

from . import parts

assert __package__ == "package"
assert __spec__ is not None
assert __spec__.name == "package.training"
model = parts.build()
optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
model(torch.randn(4, 2)).mean().backward()
optimizer.step()
print(sys.argv[1:])
