"""Training loops over windows of microbatches, and the slow obvious way beside them.

The obvious way joins the microbatches of a window and takes one step with the batch that this
gives, in plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Optimizer

from frostline.accumulation.accumulator import Accumulator

Microbatch = tuple[Tensor, Tensor]
MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


def layer_norm_net(seed: int = 0) -> nn.Sequential:
    """No norm in it looks across the batch."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 4, bias=False)
    ).double()


def batch_norm_net(seed: int = 0) -> nn.Sequential:
    """Its norm looks across the batch; its statistics have lived."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.GELU(), nn.Linear(9, 4)).double()
    with torch.no_grad():
        net[1].running_mean.normal_()
        net[1].running_var.uniform_(0.5, 2.0)
        net[1].num_batches_tracked.fill_(7)
    return net


def microbatches(sizes: Sequence[int], seed: int = 5) -> list[Microbatch]:
    """Inputs that are not standard normal, and labels; some are to be ignored (-100)."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    for size in sizes:
        x = torch.randn(size, 6, generator=draw, dtype=torch.float64) * 1.5 + 0.4
        y = torch.randint(4, (size,), generator=draw)
        y[1:][torch.rand(size - 1, generator=draw) < 0.3] = -100
        found.append((x, y))
    return found


def cross_entropy(model: nn.Module, microbatch: Microbatch) -> Tensor:
    """The mean over the labels that count."""
    x, y = microbatch
    return F.cross_entropy(model(x), y)


def labels_that_count(microbatch: Microbatch) -> Tensor:
    return (microbatch[1] != -100).sum()


def joined(window: Sequence[Microbatch]) -> Microbatch:
    x, y = zip(*window, strict=True)
    return torch.cat(x), torch.cat(y)


def accumulator(model: nn.Module, count: int = 3, **options: Any) -> Accumulator:
    return Accumulator(model, SGD(model.parameters(), lr=0.1), count, **options)


def step(acc: Accumulator, model: nn.Module, x: Tensor) -> Tensor:
    return acc.backward(model(x).square().mean(), items=len(x))


def train(acc: Accumulator, model: nn.Module, loader: Any, until: int | None = None) -> None:
    """The loop, left after batch ``until``."""
    for k, x in enumerate(acc.iterate(loader)):
        step(acc, model, x)
        if k == until:
            break


def inputs(count: int) -> list[Tensor]:
    return [x for x, _ in microbatches([2] * count)]


def is_untouched(model: nn.Module) -> bool:
    """No module is called in another way, and nothing is on torch's stack."""
    called = any("_compiled_call_impl" in vars(module) for module in model.modules())
    return not called and torch._C._len_torch_function_stack() == 0


def windows(batches: Sequence[Any], count: int) -> Iterator[Sequence[Any]]:
    """The last one may be shorter."""
    for start in range(0, len(batches), count):
        yield batches[start : start + count]


@dataclass
class Run:
    """What a loop left.

    Attributes:
        losses: of each window.
        gradients: of each window, as the optimizer got them.
        parameters: at the end.
        buffers: at the end.
    """

    losses: list[float] = field(default_factory=list)
    gradients: list[list[Tensor]] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    buffers: list[Tensor] = field(default_factory=list)

    def watch(self, optimizer: Optimizer) -> None:
        def note(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            given = [p for group in optimizer.param_groups for p in group["params"]]
            self.gradients.append([p.grad.clone() for p in given if p.grad is not None])

        optimizer.register_step_pre_hook(note)

    def keep(self, model: nn.Module) -> None:
        self.parameters = [p.detach().clone() for p in model.parameters()]
        self.buffers = [b.clone() for b in model.buffers()]


def by_big_batches(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Sequence[Any],
    count: int,
    *,
    loss: Callable[[nn.Module, Any], Tensor] = cross_entropy,
    join: Callable[[Sequence[Any]], Any] = joined,
    max_grad_norm: float | None = None,
    scheduler: Any = None,
) -> Run:
    """One forward, one backward and one step for each window."""
    run = Run()
    run.watch(optimizer)
    for window in windows(batches, count):
        optimizer.zero_grad()
        value = loss(model, join(window))
        value.backward()
        if max_grad_norm is not None:
            clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        run.losses.append(value.item())
    run.keep(model)
    return run


def by_accumulator(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Iterable[Any],
    count: int,
    *,
    loss: Callable[[nn.Module, Any], Tensor] = cross_entropy,
    items: Callable[[Any], Any] = labels_that_count,
    **options: Any,
) -> Run:
    """The loop of the documentation."""
    run = Run()
    run.watch(optimizer)
    acc = Accumulator(model, optimizer, count, **options)
    steps = 0
    for batch in acc.iterate(batches):
        acc.backward(loss(model, batch), items=items(batch))
        if acc.steps > steps:
            steps = acc.steps
            run.losses.append(acc.loss)
    assert acc.pending == 0
    run.keep(model)
    return run


def assert_same(found: Run, true: Run, limit: float = 1e-12) -> None:
    """Losses, gradients and parameters, relative to the largest of a tensor."""
    assert len(found.losses) == len(true.losses) == len(found.gradients) == len(true.gradients)
    for here, there in zip(found.losses, true.losses, strict=True):
        assert abs(here - there) <= limit * max(abs(there), 1)
    for here, there in zip(found.gradients, true.gradients, strict=True):
        assert_close(here, there, limit)
    assert_close(found.parameters, true.parameters, limit)


def assert_close(found: list[Tensor], true: list[Tensor], limit: float) -> None:
    assert distance(found, true) <= limit


def distance(found: list[Tensor], true: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of all."""
    scale = max(float(t.abs().max()) for t in true)
    differences = [float((a - b).abs().max()) for a, b in zip(found, true, strict=True)]
    # Not max(): it would step over NaN.
    return float(torch.tensor(differences).max()) / scale
