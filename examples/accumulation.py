"""One accumulation loop, mended line by line, each time against the real big batch.

python examples/accumulation.py
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frostline as fl
from frostline.demo.digits import load_digits
from frostline.demo.nets import DocumentNet

MICROBATCH, STEPS = 16, 4
BATCH = MICROBATCH * STEPS
IMAGES = 346  # five whole batches and a tail of 26
Batch = tuple[Tensor, Tensor]
Train = Callable[[nn.Module, torch.optim.Optimizer], None]


def training_set() -> Batch:
    digits = load_digits()
    digits = digits[digits.labels < 5]
    digits = digits[torch.randperm(len(digits))[:IMAGES]]
    return F.interpolate(digits.images, scale_factor=4).double(), digits.labels


def compute_loss(model: nn.Module, batch: Batch) -> Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)


def by_hand(
    microbatches: list[Batch], weight: Callable[[int], float], due: Callable[[int], bool]
) -> Train:
    """The loop as people write it: what a loss is multiplied with, and when a step is taken."""

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for i, batch in enumerate(microbatches):
            (compute_loss(model, batch) * weight(i)).backward()
            if due(i):
                optimizer.step()
                optimizer.zero_grad()

    return train


def with_accumulator(microbatches: list[Batch]) -> Train:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        acc = fl.Accumulator(model, optimizer, microbatches=STEPS)
        for x, y in acc.iterate(microbatches):
            acc.backward(F.cross_entropy(model(x), y), items=len(y))

    return train


def with_accumulate(batches: list[Batch]) -> Train:
    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for batch in batches:
            fl.accumulate(model, compute_loss, fl.split(batch, size=MICROBATCH))
            optimizer.step()
            optimizer.zero_grad()

    return train


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def epoch(start: nn.Module, train: Train, windows: list[Batch]) -> tuple[list[float], int]:
    """How far each step's gradient was off that of its window in one piece; the norms' updates."""
    model = copy.deepcopy(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    distances: list[float] = []

    def compare(*_: object) -> None:
        twin = copy.deepcopy(model)
        twin.zero_grad()
        compute_loss(twin, windows[len(distances)]).backward()
        right = flat_gradient(twin)
        distances.append(float((flat_gradient(model) - right).norm() / right.norm()))

    optimizer.register_step_pre_hook(compare)
    train(model, optimizer)
    updates = model.get_buffer("norm1.num_batches_tracked")
    return distances, int(updates - start.get_buffer("norm1.num_batches_tracked"))


def main() -> None:
    torch.manual_seed(0)
    x, y = training_set()
    micro = list(zip(x.split(MICROBATCH), y.split(MICROBATCH), strict=True))
    batches = list(zip(x.split(BATCH), y.split(BATCH), strict=True))
    from_zero = [(x[:16], y[:16]), *zip(x[16:].split(BATCH), y[16:].split(BATCH), strict=True)]
    last = len(micro) - 1
    share = [len(y) / len(batches[i // STEPS][1]) for i, (_, y) in enumerate(micro)]

    rows: list[tuple[str, Train, list[Batch]]] = [
        ("as found", by_hand(micro, lambda i: 1, lambda i: i % 4 == 0), from_zero),
        ("loss / 4", by_hand(micro, lambda i: 1 / 4, lambda i: i % 4 == 0), from_zero),
        ("(i + 1) % 4", by_hand(micro, lambda i: 1 / 4, lambda i: (i + 1) % 4 == 0), batches),
        (
            "or the last one",
            by_hand(micro, lambda i: 1 / 4, lambda i: (i + 1) % 4 == 0 or i == last),
            batches,
        ),
        (
            "share of the images",
            by_hand(micro, lambda i: share[i], lambda i: (i + 1) % 4 == 0 or i == last),
            batches,
        ),
        ("fl.Accumulator", with_accumulator(micro), batches),
        ("fl.accumulate", with_accumulate(batches), batches),
    ]
    model = DocumentNet().double()
    model(x)  # stands for an epoch before: the norms have seen data
    print("one epoch            first step  images  gradient off the big batch's  updates")
    print("                                   lost  full step      last step     of norms")
    for name, train, windows in rows:
        distances, updates = epoch(model, train, windows)
        first = len(windows[0][1])
        lost = IMAGES - sum(len(y) for _, y in windows[: len(distances)])
        full = median(distances[1:5])
        tail = f"{distances[5]:9.2g}" if len(distances) > 5 else "   (none)"
        print(f"{name:20} {first:4} images  {lost:6}  {full:9.2g}      {tail}     {updates:8}")
    assert max(distances) < 1e-10, "the last row is the big batch"


if __name__ == "__main__":
    main()
