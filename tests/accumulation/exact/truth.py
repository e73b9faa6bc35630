"""The real big batch in one process, its distance from itself, and how far others are from it.

The distance from itself is the noise: the same samples in five other orders, which is the same
mathematics in other roundings. What claims to be the big batch may be four times as far off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from tests.accumulation.exact.cases import Batch, Case, chosen, cut, size_of, tensors_of

PERMUTATIONS = 5
TIMES_NOISE = 4
AT_MOST = 1e-10
CONTROL = 1e6

Accumulate = Callable[[nn.Module, Callable[[nn.Module, Batch], Tensor], list[Batch]], Tensor]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a forward and a backward leave behind.

    Attributes:
        loss: the mean over all samples, detached.
        gradients: by name; those of the batch under "batch" and their place in it.
        statistics: running means and variances by name, and the channels' standard deviation.
        buffers: all other buffers by name, counters among them.
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    statistics: dict[str, tuple[Tensor, Tensor]]
    buffers: dict[str, Tensor]


@dataclass(frozen=True)
class Distance:
    """How far one outcome is from another: relative, the largest of each kind.

    A gradient is scaled by its own norm, or by the largest of the model where it is truly zero;
    a statistic by the standard deviation of its channel (variances by its square).
    """

    loss: float
    gradients: float
    statistics: float
    buffers: float

    def largest_with(self, other: Distance) -> Distance:
        return Distance(*(max(pair) for pair in zip(self.kinds, other.kinds, strict=True)))

    @property
    def kinds(self) -> tuple[float, ...]:
        return self.loss, self.gradients, self.statistics, self.buffers

    def __str__(self) -> str:
        loss, gradients, statistics, buffers = (f"{kind:.1e}" for kind in self.kinds)
        return f"loss {loss}, gradients {gradients}, statistics {statistics}, buffers {buffers}"


# --- outcomes ----------------------------------------------------------------------------------


def outcome(model: nn.Module, loss: Tensor, microbatches: Iterable[Batch]) -> Outcome:
    """What stands in `model` and in the inputs now, copied."""
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    # The loss of a microbatch is weighted by its samples, so gradients of inputs only go together.
    for place, parts in enumerate(zip(*map(tensors_of, microbatches), strict=True)):
        if parts[0].requires_grad:
            gradients[f"batch {place}"] = torch.cat([part.grad for part in parts])
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    statistics = {}
    for name in [name for name in buffers if name.endswith("running_mean")]:
        spread = name.removesuffix("mean") + "var"
        mean, variance = buffers.pop(name), buffers.pop(spread)
        statistics |= {name: (mean, variance.sqrt()), spread: (variance, variance)}
    return Outcome(loss.detach().clone(), gradients, statistics, buffers)


def big_batch(case: Case, dtype: torch.dtype = torch.float64) -> Outcome:
    """One forward, one backward."""
    return in_order(case, dtype, torch.arange(size_of(case.batch())))


def in_order(case: Case, dtype: torch.dtype, order: Tensor) -> Outcome:
    """The big batch with its samples in this order."""
    model = case.build(dtype)
    case.unroll(model)
    batch = chosen(case.big_batch(dtype), order)
    loss = case.loss(model, batch)
    loss.backward()
    found = outcome(model, loss, [batch])
    back = order.argsort()
    gradients = {n: g[back] if n.startswith("batch ") else g for n, g in found.gradients.items()}
    return Outcome(found.loss, gradients, found.statistics, found.buffers)


def run(
    case: Case,
    accumulate: Accumulate,
    sizes: Sequence[int],
    dtype: torch.dtype = torch.float64,
) -> Outcome:
    """The same from microbatches of these sizes."""
    return next(runs(case, accumulate, [sizes], dtype))


def runs(
    case: Case,
    accumulate: Accumulate,
    splits: Iterable[Sequence[int]],
    dtype: torch.dtype = torch.float64,
) -> Iterator[Outcome]:
    """The same for several splits; one model, which starts from the same state each time."""
    model = case.build(dtype)
    state = deepcopy(model.state_dict())
    for sizes in splits:
        model.load_state_dict(state)
        model.zero_grad()
        microbatches = cut(case.big_batch(dtype), sizes)
        loss = accumulate(model, case.loss, microbatches)
        yield outcome(model, loss, microbatches)


# --- distances ---------------------------------------------------------------------------------


def distance(found: Outcome, true: Outcome) -> Distance:
    """How far `found` is from `true`."""
    for kind in ("gradients", "statistics", "buffers"):
        here, there = getattr(found, kind).keys(), getattr(true, kind).keys()
        assert here == there, f"{kind} of {sorted(here ^ there)} in one of the two only"
    return Distance(
        _relative(found.loss, true.loss),
        _largest(_gradient_distances(found.gradients, true.gradients)),
        _largest(_statistic_distances(found, true)),
        _largest(_relative(found.buffers[name], old) for name, old in true.buffers.items()),
    )


def _gradient_distances(found: dict[str, Tensor], true: dict[str, Tensor]) -> Iterable[float]:
    largest = max(float(gradient.double().norm()) for gradient in true.values())
    for name, gradient in true.items():
        scale = float(gradient.double().norm())
        # A bias before a norm has no influence; what stands in its gradient is rounding.
        scale = scale if scale > 1e-6 * largest else largest
        yield float((found[name].double() - gradient.double()).norm()) / scale


def _statistic_distances(found: Outcome, true: Outcome) -> Iterable[float]:
    for name, (statistic, scale) in true.statistics.items():
        apart = found.statistics[name][0].double() - statistic.double()
        yield float((apart / scale.double()).abs().max())


def _relative(found: Tensor, true: Tensor) -> float:
    if not true.is_floating_point():
        return float(not torch.equal(found, true))
    return float((found.double() - true.double()).norm() / true.double().norm())


def _largest(distances: Iterable[float]) -> float:
    # Not max(): it would step over NaN.
    return float(torch.tensor([0.0, *distances], dtype=torch.float64).max())


# --- the rule ----------------------------------------------------------------------------------


@cache
def truth(case: Case) -> tuple[Outcome, Distance]:
    """The real big batch in float64, and its largest distance from itself in other orders."""
    true = big_batch(case)
    return true, _spread(case, torch.float64, true)


@cache
def own_error(case: Case, dtype: torch.dtype, exact: Case) -> Distance:
    """The largest distance of the big batch in `dtype` from the truth of `exact`, in any order."""
    true = truth(exact)[0]
    return _spread(case, dtype, true).largest_with(distance(big_batch(case, dtype), true))


def _spread(case: Case, dtype: torch.dtype, true: Outcome) -> Distance:
    draw = torch.Generator().manual_seed(17)
    # A loss is one number, which other orders may leave as it is to the last bit.
    epsilon = torch.finfo(dtype).eps
    spread = Distance(epsilon, epsilon, epsilon, 0.0)
    for _ in range(PERMUTATIONS):
        order = torch.randperm(size_of(case.batch()), generator=draw)
        spread = spread.largest_with(distance(in_order(case, dtype, order), true))
    return spread


def error_and_noise(case: Case, found: Outcome) -> tuple[Distance, Distance]:
    true, noise = truth(case)
    return distance(found, true), noise


def assert_is_big_batch(case: Case, found: Outcome) -> tuple[Distance, Distance]:
    """Every gradient, the loss, every statistic and buffer within the rule; error and noise."""
    error, noise = error_and_noise(case, found)
    allowed = [min(TIMES_NOISE * kind, AT_MOST) for kind in noise.kinds]
    assert all(kind <= limit for kind, limit in zip(error.kinds, allowed, strict=True)), (
        f"{case}: not the big batch\n  error: {error}\n  noise: {noise}"
    )
    return error, noise


def assert_is_far_off(case: Case, found: Outcome) -> tuple[Distance, Distance]:
    """A control: gradients beyond 10^6 times the noise; error and noise."""
    error, noise = error_and_noise(case, found)
    assert error.gradients > CONTROL * noise.gradients, (
        f"{case}: the control is too close\n  error: {error}\n  noise: {noise}"
    )
    return error, noise


# --- controls ----------------------------------------------------------------------------------


def plainly(model: nn.Module, loss: Callable[..., Tensor], microbatches: list[Batch]) -> Tensor:
    """Accumulation as everybody does it."""
    total = sum(map(size_of, microbatches))
    losses = []
    for microbatch in microbatches:
        losses.append(loss(model, microbatch) * (size_of(microbatch) / total))
        losses[-1].backward()
    return torch.stack(losses).sum().detach()
