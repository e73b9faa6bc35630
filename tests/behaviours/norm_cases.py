"""Every setting of every normalisation layer of torch, with a past, and inputs of three sizes."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import frostline as fl
from frostline.errors import FrostlineWarning
from frostline.types import FrozenPart

CHANNELS = 4
MOMENTA = (None, 0.0, 0.1, 1.0)
BATCHES = (1, 2, 8)
HOLDS = (None, "hold", "batch", "update")

# Layer -> shapes of one sample, the smallest first: there some layers have one value only.
TRACKING: dict[type[nn.Module], list[tuple[int, ...]]] = {
    nn.BatchNorm1d: [(CHANNELS,), (CHANNELS, 3)],
    nn.BatchNorm2d: [(CHANNELS, 1, 1), (CHANNELS, 2, 3)],
    nn.BatchNorm3d: [(CHANNELS, 1, 1, 1), (CHANNELS, 2, 1, 2)],
    nn.SyncBatchNorm: [(CHANNELS, 1), (CHANNELS, 2, 3)],
    nn.InstanceNorm1d: [(CHANNELS, 1), (CHANNELS, 3)],
    nn.InstanceNorm2d: [(CHANNELS, 1, 1), (CHANNELS, 2, 3)],
    nn.InstanceNorm3d: [(CHANNELS, 1, 1, 1), (CHANNELS, 2, 1, 2)],
}
PER_SAMPLE: dict[str, list[tuple[int, ...]]] = {
    "GroupNorm, 2 groups": [(CHANNELS, 1), (CHANNELS, 2, 3)],
    "GroupNorm, a group a channel": [(CHANNELS,), (CHANNELS, 2, 3)],
    "LayerNorm": [(CHANNELS,), (3, CHANNELS)],
    "LayerNorm over two dimensions": [(3, CHANNELS)],
    "RMSNorm": [(CHANNELS,), (3, CHANNELS)],
}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Case:
    """One layer in one setting, and the shape of its input."""

    layer: str
    shape: tuple[int, ...]
    affine: bool
    track: bool | None
    momentum: float | None
    training: bool
    requires_grad: bool
    hold: str | None

    def make(self) -> nn.Module:
        if self.track is None:
            return _per_sample(self.layer, self.affine)
        cls = getattr(nn, self.layer)
        return cls(  # type: ignore[no-any-return]
            CHANNELS,
            momentum=self.momentum,
            affine=self.affine,
            track_running_stats=self.track,
            dtype=torch.float64,
        )

    def build(self) -> tuple[nn.ModuleDict, FrozenPart | None]:
        """A net whose `norm` has a past and is held as asked, in its mode; and the part."""
        norm = _live(self.make())
        for parameter in norm.parameters():
            parameter.requires_grad_(self.requires_grad)
        net = nn.ModuleDict({"norm": norm, "head": nn.Linear(1, 1)})
        part = None
        if self.hold is not None:
            with warnings.catch_warnings():
                # A norm without running statistics cannot be held; that freeze says so is no news.
                warnings.simplefilter("ignore", FrostlineWarning)
                part = fl.freeze(net, "norm", params=False, stats=self.hold, mode="follow")
        net.train(self.training)
        return net, part

    def inputs(self) -> Tensor:
        draw = torch.Generator().manual_seed(len(self.shape) + self.shape[0])
        return torch.randn(self.shape, generator=draw, dtype=torch.float64) * 1.7 + 0.6


def _per_sample(layer: str, affine: bool) -> nn.Module:
    kinds: dict[str, Any] = {
        "GroupNorm, 2 groups": lambda: nn.GroupNorm(2, CHANNELS, affine=affine),
        "GroupNorm, a group a channel": lambda: nn.GroupNorm(CHANNELS, CHANNELS, affine=affine),
        "LayerNorm": lambda: nn.LayerNorm(CHANNELS, elementwise_affine=affine),
        "LayerNorm over two dimensions": lambda: nn.LayerNorm(
            (3, CHANNELS), elementwise_affine=affine
        ),
        "RMSNorm": lambda: nn.RMSNorm(CHANNELS, eps=1e-4, elementwise_affine=affine),
    }
    module: nn.Module = kinds[layer]().double()
    return module


def _live(norm: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_(0.3, 1.0, generator=draw)
        for name, buffer in norm.named_buffers():
            if name == "running_mean":
                buffer.normal_(0.0, 0.7, generator=draw)
            elif name == "running_var":
                buffer.uniform_(0.3, 3.0, generator=draw)
            else:
                buffer.fill_(7)
    return norm


def tracking_cases(layer: type[nn.Module]) -> Iterator[Case]:
    settings = itertools.product(
        TRACKING[layer],
        BATCHES,
        (True, False),
        (True, False),
        MOMENTA,
        (True, False),
        (True, False),
        HOLDS,
    )
    for sample, batch, affine, track, momentum, training, grad, hold in settings:
        yield Case(layer.__name__, (batch, *sample), affine, track, momentum, training, grad, hold)


def per_sample_cases(layer: str) -> Iterator[Case]:
    settings = itertools.product(
        PER_SAMPLE[layer], BATCHES, (True, False), (True, False), (True, False), (None, "hold")
    )
    for sample, batch, affine, training, grad, hold in settings:
        yield Case(layer, (batch, *sample), affine, None, None, training, grad, hold)
