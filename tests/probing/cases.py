"""Models, what couples samples in them, and what accumulation does to their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import frostline as fl
from frostline._batches import pieces, samples
from tests.probing import models
from tests.probing.models import WIDTH, images, mlp, sequences, vectors
from tests.zoo import seeded


class Case(NamedTuple):
    """A model and a batch.

    Attributes:
        make: the model.
        batch: what it takes.
        couplers: full name of each module that couples samples, and whether it is joinable.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], Tensor]
    couplers: dict[str, bool]


def _held() -> nn.Module:
    model = mlp(nn.BatchNorm1d(WIDTH))
    fl.freeze(model, "1")
    return model.train()


def _scripted() -> nn.Module:
    return mlp(torch.jit.script(nn.BatchNorm1d(WIDTH)))


def _experts(capacity: int | None, *, length_first: bool) -> nn.Module:
    return models.WithExperts(models.Experts(capacity, length_first=length_first))


CASES: dict[str, Case] = {
    "batch norm": Case(lambda: mlp(nn.BatchNorm1d(WIDTH)), vectors, {"1": True}),
    "batch norm in eval mode": Case(lambda: mlp(nn.BatchNorm1d(WIDTH)).eval(), vectors, {}),
    "held batch norm": Case(_held, vectors, {}),
    "untracked in eval mode": Case(lambda: models.Untracked().eval(), vectors, {"norm": True}),
    "two samples": Case(lambda: mlp(nn.BatchNorm1d(WIDTH)), lambda: vectors(2), {"1": True}),
    "reused": Case(models.twice_the_same, vectors, {"1": True}),
    "without affine": Case(lambda: mlp(nn.BatchNorm1d(WIDTH, affine=False)), vectors, {"1": True}),
    "hand-written": Case(models.HandWritten, images, {"": False, "norm": True}),
    "functional": Case(models.Functional, images, {"": True}),
    "functional in eval mode": Case(lambda: models.Functional().eval(), images, {}),
    "scripted": Case(_scripted, vectors, {"1": False}),
    "deviation of all": Case(lambda: models.discriminator(99), images, {"2": False}),
    "deviation of two": Case(lambda: models.discriminator(2), images, {"2": False}),
    "norms of samples": Case(models.norms_of_samples, images, {}),
    "codebook": Case(models.Codebook, sequences, {"": False}),
    "codebook in eval mode": Case(lambda: models.Codebook().eval(), sequences, {}),
    "norm over steps": Case(models.LengthFirst, sequences, {"norm": True}),
    "norm over padded steps": Case(models.Padded, sequences, {"norm": True}),
    "attention": Case(lambda: models.Attention(batch_first=True), sequences, {}),
    "attention over samples": Case(
        lambda: models.Attention(batch_first=False), sequences, {"attention": False}
    ),
    "recurrent": Case(lambda: nn.LSTM(WIDTH, 5, batch_first=True), sequences, {}),
    "recurrent over samples": Case(lambda: nn.LSTM(WIDTH, 5), sequences, {"": False}),
    "one by one": Case(models.OneByOne, images, {}),
    "shuffled": Case(models.Shuffled, vectors, {"net.1": True}),
    "ghost": Case(models.Ghost, vectors, {"": True}),
    "rolled": Case(lambda: mlp(models.Rolled()), vectors, {"1": False}),
    "cumulated": Case(lambda: mlp(models.Cumulated()), vectors, {"1": False}),
    "rezero": Case(models.ReZero, vectors, {"norm": True}),
    "experts": Case(lambda: _experts(None, length_first=False), sequences, {}),
    "experts, length first": Case(lambda: _experts(None, length_first=True), sequences, {}),
    "experts with a capacity": Case(
        lambda: _experts(5, length_first=True), sequences, {"experts": False}
    ),
    "sorted experts": Case(
        lambda: models.WithExperts(models.SortedExperts()), sequences, {}
    ),
}  # fmt: skip


def square(model: nn.Module, batch: Any) -> Tensor:
    """A mean over samples, of whatever the model returns first."""
    output = model(batch)
    return (output[0] if isinstance(output, tuple) else output).pow(2).mean()


def accumulation_error(
    make: Callable[[], nn.Module],
    compute_loss: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    count: int = 2,
) -> float:
    """How far the gradients of ``count`` microbatches are from the big batch's, in float64.

    The slow obvious way: relative to the largest gradient of all. Dropout is off.
    """
    big, small = _same(make), _same(make)
    compute_loss(big, batch).backward()
    for piece in pieces(batch, count):
        (compute_loss(small, piece) * samples(piece) / samples(batch)).backward()
    pairs = zip(big.parameters(), small.parameters(), strict=True)
    grads = [(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None]
    scale = max(float(a.abs().max()) for a, _ in grads)
    return max(float((a - b).abs().max()) for a, b in grads) / scale


def _same(make: Callable[[], nn.Module]) -> nn.Module:
    with seeded(0):
        model = make().double()
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    return model
