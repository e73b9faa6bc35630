"""Models that write to themselves in a forward, each in another way."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, FusedMovingAvgObsFakeQuantize
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from tests.zoo import live, seeded


class Counting(nn.Module):
    """A counter and an average of the input, written in place."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("calls", torch.tensor(3))
        self.register_buffer("average", torch.randn(4))
        self.register_buffer("still", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.average.lerp_(x.detach().mean(0), 0.1)
        return self.linear(x) * self.still


class Reassigning(nn.Module):
    """Buffers replaced by new tensors: by one that differs, and by one that may not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("decayed", torch.randn(4))
        self.register_buffer("seen", torch.randn(4))
        self.register_buffer("cache", torch.arange(4.0).cos())

    def forward(self, x: Tensor) -> Tensor:
        self.decayed = self.decayed * 0.9
        self.seen = x.detach().mean(0)
        self.cache = torch.arange(4.0, device=x.device).cos()
        return self.linear(x) * self.cache


class Codebook(nn.Module):
    """Vector quantisation whose codes follow the data, by ``.data``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.codes = nn.Parameter(torch.randn(8, 4), requires_grad=False)
        self.register_buffer("sizes", torch.rand(8) + 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        chosen = F.one_hot(torch.cdist(x, self.codes).argmin(1), 8).to(x.dtype)
        if self.training:
            self.sizes.data.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
            moved = self.codes * 0.9 + 0.1 * (chosen.t() @ x.detach())
            self.codes.data.copy_(moved)
        return x + (chosen @ self.codes - x).detach()


class Swapping(nn.Module):
    """Parameters given other memory by ``.data = ...``."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.slow = nn.Parameter(torch.randn(4), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.slow.data = self.slow.data * 0.9 + x.detach().mean(0) * 0.1
        return self.linear(x) + self.slow


class Queue(nn.Module):
    """MoCo's queue: a slice is written, at a place that a buffer tells."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("queue", torch.randn(4, 12))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        keys = self.linear(x)
        at = int(self.place)
        scores = keys @ self.queue.clone().detach()
        self.queue[:, at : at + len(x)] = keys.detach().t()
        self.place[0] = (at + len(x)) % 12
        return scores


class Momentum(nn.Module):
    """A teacher that follows its student."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Linear(4, 4)
        self.teacher = deepcopy(self.student).requires_grad_(False)
        with torch.no_grad():
            self.student.weight.add_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                slow.mul_(0.9).add_(fast, alpha=0.1)
        return self.student(x) - self.teacher(x).detach()


class Checkpointed(nn.Module):
    """A norm that is run again in backward, and counts again."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return checkpoint(self.norm, x, use_reentrant=self.reentrant)  # type: ignore[no-any-return]


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 2


class Custom(nn.Module):
    """A function with a backward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return _Doubled.apply(self.linear(x))  # type: ignore[no-any-return]


class Hidden(nn.Module):
    """Adapters whose second matrix is zero, so that the first has no gradient yet."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(4, 4).requires_grad_(False)
        self.down, self.up = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Words(nn.Module):
    """An embedding tied to the layer that reads it out."""

    def __init__(self, max_norm: float | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4, max_norm=max_norm)
        self.out = nn.Linear(4, 10, bias=False)
        if max_norm is None:
            self.out.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.table(x.abs().mul(3).long().clamp(max=9)))


class Flat(nn.Module):
    """Two parameters in one flat memory, as FSDP and some optimizers keep them."""

    def __init__(self) -> None:
        super().__init__()
        flat = torch.randn(20)
        self.weight = nn.Parameter(flat[:16].view(4, 4))
        self.bias = nn.Parameter(flat[16:])
        self.register_buffer("window", flat[14:18])
        self.register_buffer("apart", flat.clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


def _spectral() -> nn.Module:
    return parametrizations.spectral_norm(nn.Linear(4, 4))


def _weight_norm() -> nn.Module:
    return parametrizations.weight_norm(nn.Linear(4, 4))


def observed(kind: type[FakeQuantize] = FusedMovingAvgObsFakeQuantize) -> nn.Module:
    """As quantisation-aware training makes them; the other kind asks for values."""
    quantize = kind(quant_min=0, quant_max=255)
    return nn.Sequential(nn.Linear(4, 4), quantize, nn.Linear(4, 2))


def _norm(**options: Any) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, **options), nn.Linear(4, 2))


WRITERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": _norm,
    "batch norm, momentum None": lambda: _norm(momentum=None),
    "batch norm, momentum 0": lambda: _norm(momentum=0.0),
    "batch norm, no statistics": lambda: _norm(track_running_stats=False),
    "counter and average": Counting,
    "buffers replaced": Reassigning,
    "codebook": Codebook,
    "data swapped": Swapping,
    "queue": Queue,
    "momentum teacher": Momentum,
    "checkpoint": lambda: Checkpointed(reentrant=False),
    "checkpoint, reentrant": lambda: Checkpointed(reentrant=True),
    "custom function": Custom,
    "adapter that begins at zero": Hidden,
    "tied": Words,
    "max_norm": lambda: Words(max_norm=0.5),
    "flat memory": Flat,
    "spectral norm": _spectral,
    "weight norm": _weight_norm,
    "observer": observed,
}


def built(name: str) -> nn.Module:
    """One of them, with statistics and affine parameters that have lived, in training mode."""
    with seeded(3):
        model = WRITERS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                live(module)
    return model.train()


def batch() -> Tensor:
    """Six samples of four features."""
    with seeded(5):
        return torch.randn(6, 4)
