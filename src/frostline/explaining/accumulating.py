"""What gradient accumulation does to running statistics: formulas, and a run that checks them.

With K microbatches a step a norm averages K times: of what was there (1 - m)^K is left instead of
1 - m. And each microbatch sees too little of the variance: samples that are alike inside (pixels of
one image) count as fewer. For n samples of P positions with correlation rho between the positions
of a sample, the expectation of the variance from N - 1 is s2 (1 - (P - 1) rho / (n P - 1)), about
1 - rho / n, whatever the momentum, and more steps do not mend it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from frostline._batches import pieces, samples
from frostline._calling import call, failing_call
from frostline.behaviours import behaviour
from frostline.behaviours.untouched import untouched


@dataclass(frozen=True)
class Accumulated:
    """What accumulation does to the running statistics of one norm.

    Attributes:
        name: full name of the norm.
        momentum: m; None where all batches count alike.
        kept: share of the old running mean that is left after a step of one big batch.
        kept_accumulated: the same after a step of the microbatches.
        rho: mean correlation of the values within a sample; None without a batch, or where a
            sample has one value for each channel.
        predicted: expected running variance as a share of the big batch's, by the formula.
        measured: the same in the run: mean of the microbatches' variances over the big batch's.
        error: largest distance of the running mean after the run from its formula, in standard
            deviations of the channel.
    """

    name: str
    momentum: float | None
    kept: float | None
    kept_accumulated: float | None
    rho: float | None = None
    predicted: float | None = None
    measured: float | None = None
    error: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)


def by_formula(modules: list[tuple[str, nn.Module]], count: int) -> list[Accumulated]:
    """What can be said without a batch, of the norms that write their statistics now."""
    found = []
    for name, module in modules:
        if _writes(module):
            momentum = getattr(module, "momentum", None)
            kept = None if momentum is None else 1 - momentum
            found.append(Accumulated(name, momentum, kept, None if kept is None else kept**count))
    return found


def by_run(
    model: nn.Module, modules: list[tuple[str, nn.Module]], count: int, batch: Any
) -> list[Accumulated]:
    """The same with figures: ``batch`` whole and in ``count`` pieces, from the same state.

    Raises:
        BatchError: the model cannot be run on it, or it holds fewer samples than pieces.
    """
    norms = [(name, module) for name, module in modules if _writes(module)]
    total = samples(batch)
    cut = pieces(batch, count)
    whole = _run(model, norms, [batch])
    parts = _run(model, norms, cut)
    plain = {entry.name: entry for entry in by_formula(norms, count)}
    return [
        _compare(plain[name], module, whole[name], parts[name], total / count)
        for name, module in norms
    ]


def _writes(module: nn.Module) -> bool:
    doing = behaviour(module)
    if doing is None or doing.now.statistics != "batch":
        return False
    return {"running_mean", "running_var"} <= {write.tensor for write in doing.now.writes}


@dataclass
class _Seen:
    """What one norm saw over the calls of a run, and the running mean before and after."""

    calls: list[_Moments] = field(default_factory=list)
    before: Tensor | None = None
    after: Tensor | None = None


@dataclass(frozen=True)
class _Moments:
    """Of one input, for each channel: mean, variance from N - 1, variance of the samples' means."""

    mean: Tensor
    var: Tensor
    between: Tensor
    positions: int


def _run(
    model: nn.Module, norms: list[tuple[str, nn.Module]], batches: list[Any]
) -> dict[str, _Seen]:
    seen = {name: _Seen() for name, _ in norms}
    with untouched(model, batches, values=True), torch.no_grad():
        for name, module in norms:
            seen[name].before = _mean_of(module)
            module.register_forward_pre_hook(_note(seen[name].calls), with_kwargs=True)
        for batch in batches:
            with failing_call(batch):
                call(model, batch)
        for name, module in norms:
            seen[name].after = _mean_of(module)
    return seen


def _mean_of(norm: nn.Module) -> Tensor:
    mean = norm.running_mean
    assert isinstance(mean, Tensor)  # noqa: S101
    return mean.detach().double().clone()


def _note(calls: list[_Moments]) -> Any:
    def note(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        calls.append(_moments(next(iter((*inputs, *named.values()))).detach()))

    return note


def _moments(x: Tensor) -> _Moments:
    values = x.double().reshape(*x.shape[:2], -1)  # samples, channels, positions
    mean = values.mean((0, 2))
    rest = max(values.shape[0] * values.shape[2] - 1, 1)
    var = ((values - mean[:, None]) ** 2).sum((0, 2)) / rest
    between = ((values.mean(2) - mean) ** 2).sum(0) / max(values.shape[0] - 1, 1)
    return _Moments(mean, var, between, values.shape[2])


def _compare(
    entry: Accumulated, norm: nn.Module, whole: _Seen, parts: _Seen, size: float
) -> Accumulated:
    if len(whole.calls) != 1 or not parts.calls:
        return entry  # never called, or called several times: its inputs are no one batch
    big = whole.calls[0]
    rho = _rho(big)
    positions = big.positions
    short = (positions - 1) * rho / max(size * positions - 1, 1)
    scale = big.var.sum().clamp_min(torch.finfo(torch.float64).tiny)
    var = torch.stack([moments.var for moments in parts.calls]).mean(0)
    return Accumulated(
        entry.name,
        entry.momentum,
        entry.kept,
        entry.kept_accumulated,
        rho=None if positions == 1 else float((rho * big.var).sum() / scale),
        predicted=float(((1 - short) * big.var).sum() / scale),
        measured=float(var.sum() / scale),
        error=_error(entry, norm, parts, big),
    )


def _rho(big: _Moments) -> Tensor:
    """Correlation of two values of one sample: Var(sample mean) = s2 (1 + (P - 1) rho) / P."""
    if big.positions == 1:
        return torch.zeros_like(big.var)
    ratio = big.positions * big.between / big.var.clamp_min(torch.finfo(torch.float64).tiny)
    return (ratio - 1) / (big.positions - 1)


def _error(entry: Accumulated, norm: nn.Module, parts: _Seen, big: _Moments) -> float:
    """How far the real running mean is from m m_K + (1 - m) (m m_(K-1) + ...)."""
    assert parts.before is not None  # noqa: S101
    assert parts.after is not None  # noqa: S101
    expected = parts.before
    counter = getattr(norm, "num_batches_tracked", None)
    seen = int(counter) if isinstance(counter, Tensor) else 0
    for i, moments in enumerate(parts.calls):
        m = entry.momentum if entry.momentum is not None else 1 / (seen + i + 1)
        expected = (1 - m) * expected + m * moments.mean
    deviation = big.var.sqrt().clamp_min(1e-30)
    return float(((parts.after - expected).abs() / deviation).max())
