"""The slow obvious way, and how far its answer is from itself."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.zoo import BREADTH, ZOO, fresh

Statistics = dict[str, Tensor]


def norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those with running statistics."""
    for name, module in model.named_modules():
        if isinstance(module._buffers.get("running_mean"), Tensor):
            yield name, module


def in_training(model: nn.Module) -> nn.Module:
    """A copy whose norms train, and nothing else does."""
    copy = deepcopy(model).eval()
    for _, norm in norms(copy):
        norm.train()
    return copy


def truth(model: nn.Module, x: Tensor) -> Statistics:
    """What one training-mode forward of all samples leaves with momentum 1."""
    return _overwritten(_forgetting(model), x)


def _forgetting(model: nn.Module) -> nn.Module:
    copy = in_training(model)
    for _, norm in norms(copy):
        norm.momentum = 1.0
    return copy


def _overwritten(copy: nn.Module, x: Tensor) -> Statistics:
    with torch.no_grad():
        copy(x)
    return statistics(copy)


def truth_of_inputs(model: nn.Module, x: Tensor) -> Statistics:
    """Mean and variance of all that went into each norm in one training-mode forward."""
    copy = in_training(model)
    seen: dict[str, list[Tensor]] = {}
    for name, norm in norms(copy):
        inputs = seen.setdefault(name, [])
        norm.register_forward_pre_hook(lambda _, x, inputs=inputs: inputs.append(x[0]))
    with torch.no_grad():
        copy(x)
    found = {}
    for name, inputs in seen.items():
        values = torch.cat([i.transpose(0, 1).flatten(1) for i in inputs], 1)
        found[f"{name}.running_mean"] = values.mean(1)
        found[f"{name}.running_var"] = values.var(1)
    return found


def statistics(model: nn.Module) -> Statistics:
    """The running ones, copied."""
    return {
        name: buffer.clone()
        for name, buffer in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }


def distance(a: Statistics, b: Statistics) -> float:
    """The largest over channels and norms, in standard deviations and in variances of ``b``."""
    assert a.keys() == b.keys()
    worst = 0.0
    for name, value in b.items():
        variance = b[name.replace("running_mean", "running_var")]
        scale = variance.sqrt() if name.endswith("running_mean") else variance
        worst = max(worst, ((a[name] - value).abs() / scale).max().item())
    return worst


def noise(model: nn.Module, x: Tensor, found: Statistics) -> float:
    """The largest distance of the truth from itself under five permutations of the samples."""
    copy = _forgetting(model)
    permuted = [_overwritten(copy, x[torch.randperm(len(x))]) for _ in range(5)]
    return max(2**-52, *(distance(other, found) for other in permuted))


class Known(NamedTuple):
    """A model, inputs, what one forward of them leaves, and how far one may be from that."""

    model: nn.Module
    x: Tensor
    found: Statistics
    limit: float


def known(model: nn.Module, x: Tensor) -> Known:
    """At most four times the noise of the truth, and never more than 1e-10."""
    found = truth(model, x)
    return Known(model, x, found, min(1e-10, 4 * noise(model, x, found)))


@cache
def _known_once(name: str) -> Known:
    return known(*zoo(name))


def of_zoo(name: str) -> Known:
    """The same for a model of the zoo, a copy of it."""
    once = _known_once(name)
    return once._replace(model=deepcopy(once.model))


def zoo(name: str, samples: int = 8) -> tuple[nn.Module, Tensor]:
    """A model with a past in float64, and inputs for it that are not all alike."""
    entry = (ZOO | BREADTH)[name]
    model, (x, _) = fresh(entry).double(), entry.batch()
    draw = torch.Generator().manual_seed(3)
    shape = (samples, *x.shape[1:])
    if x.shape[-1] == 32:  # half of it is enough to see an error, and four times as fast
        shape = (*shape[:2], 16, 16)
    scale = torch.linspace(0.5, 2.0, samples, dtype=torch.float64)
    x = torch.randn(shape, generator=draw, dtype=torch.float64)
    return model, x * scale.view(-1, *[1] * (x.dim() - 1)) + 0.3


class UNet(nn.Module):
    """Two levels, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.deep = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(6, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU(),
            nn.ConvTranspose2d(9, 6, 2, stride=2), nn.BatchNorm2d(6), nn.Dropout2d(0.5),
        )  # fmt: skip
        self.up = nn.Sequential(nn.Conv2d(12, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.up(torch.cat([x, self.deep(x)], 1))


class Shared(nn.Module):
    """One norm after two layers, and one more after them."""

    def __init__(self, momentum: float | None = 0.1) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 7)
        self.norm = nn.BatchNorm1d(7, momentum=momentum)
        self.last = nn.BatchNorm1d(7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.last(self.norm(self.second(x)))
