"""Cases of FRZ108, self-writing-module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ108"})


def ema_inplace(old: Tensor, new: Tensor, decay: float) -> None:
    old.mul_(decay).add_(new, alpha=1 - decay)


class Codebook(nn.Module):
    """Codes that follow their inputs, as vector-quantize-pytorch writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("embed", torch.randn(5, 4))
        self.register_buffer("cluster_size", torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.embed).argmin(1)
        if self.training:
            hits = nn.functional.one_hot(nearest, 5).to(x)
            ema_inplace(self.cluster_size, hits.sum(0), 0.8)
            self.embed.data.mul_(0.8).add_(hits.t() @ x.detach(), alpha=0.2)
        return self.embed[nearest]


class Queue(nn.Module):
    """Keys of momentum contrast, written from a pointer on in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.randn(4, 8))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        at = int(self.pointer)
        self.queue[:, at : at + len(x)] = x.detach().T
        self.pointer[0] = (at + len(x)) % self.queue.shape[1]
        return x @ self.queue[:, :4]


class Counter(nn.Module):
    """Counts its calls in an attribute that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Registered(Counter):
    """The same, and it is known how to hold it."""


fl.freezing.register_holder(Registered, lambda module, x: x)


class ActNorm(nn.Module):
    """Set by the first batch that it sees in training, left alone after that."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("ready", torch.zeros((), dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.ready:
            self.mean.copy_(x.detach().mean(0))
            self.ready.fill_(1)
        return x - self.mean


class Adapting(nn.Module):
    """Follows its inputs at test time, and only then."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            self.mean.lerp_(x.detach().mean(0), 0.1)
        return x - self.mean.clone()


class Reading(nn.Module):
    """A near miss: in-place methods on what it computed, and buffers that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean).mul_(2.0)


def _net(writer: nn.Module) -> nn.Sequential:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), writer), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    return model


def _batch() -> Tensor:
    return torch.randn(4, 4, generator=torch.Generator().manual_seed(1))


def bad_codebook() -> Case:
    return Case(_net(Codebook()), batch=_batch(), codes=_ONLY)


def bad_codebook_by_reading() -> Case:
    return Case(_net(Codebook()), codes=_ONLY)


def bad_queue_in_eval() -> Case:
    return Case(_net(Queue()).eval(), batch=_batch(), codes=_ONLY)


def bad_counter() -> Case:
    """What is no buffer is in no checkpoint, either."""
    return Case(_net(Counter()), batch=_batch(), codes=_ONLY | {"FRZ401"})


def bad_first_batch_sets_it() -> Case:
    return Case(_net(ActNorm()), batch=_batch(), codes=_ONLY)


def bad_held_in_vain() -> Case:
    model = _net(Counter())
    fl.freeze(model, "0")
    return Case(model.train(), batch=_batch(), codes=_ONLY)


def bad_it_writes_in_eval_only() -> Case:
    return Case(_net(Adapting()).eval(), batch=_batch(), codes=_ONLY)


def good_it_would_write_in_eval_only() -> Case:
    return Case(_net(Adapting()), batch=_batch())


def good_codebook_held() -> Case:
    model = _net(Codebook())
    fl.freeze(model, "0")
    return Case(model.train(), batch=_batch())


def good_codebook_held_with_the_modes_of_the_rest() -> Case:
    model = _net(Codebook())
    fl.freeze(model, "0", mode="follow")
    return Case(model.train(), batch=_batch())


def good_held_as_its_user_said() -> Case:
    model = _net(Registered())
    fl.freeze(model, "0")
    return Case(model.train())


def good_set_already() -> Case:
    writer = ActNorm()
    writer(_batch())
    return Case(_net(writer), batch=_batch())


def good_it_only_reads() -> Case:
    return Case(_net(Reading()))


def good_codebook_that_trains() -> Case:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Codebook(), nn.Linear(4, 1)))
    model[0].requires_grad_(False)
    return Case(model)
