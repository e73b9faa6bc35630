"""Normalisation layers: what they normalise with in each mode, and which statistics they write.

Sources: Ioffe and Szegedy 2015 (batch), Ulyanov et al. 2016 (instance), Ba et al. 2016 (layer), Wu
and He 2018 (group), Zhang and Sennrich 2019 (root mean square), Krizhevsky et al. 2012 (local
response); what torch writes and refuses was read in its code and is compared with a run of each.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from frostline.behaviours.doing import Averaged, Doing, Statistics, Unit, Write
from frostline.freezing.record import BATCH

_COUNTER = "num_batches_tracked"


def batch_norm(module: nn.Module, training: bool) -> Doing:
    """BatchNorm of any number of dimensions, its synchronised, lazy and derived forms."""
    tracked = _has(module, "running_mean") or _has(module, "running_var")
    if not training and tracked:
        return running_statistics(module, training)
    writes = _batch_writes(module) if training and _tracks(module, training) else ()
    where = "of each channel over the batch"
    if isinstance(module, nn.SyncBatchNorm):
        where += ", on all ranks of the process group if there is one"
    return _standardised(module, "normalises with the batch", where, "batch", writes, "channel")


def running_statistics(module: nn.Module, training: bool) -> Doing:
    """A norm that uses what its buffers hold, in eval mode or always (FrozenBatchNorm2d)."""
    symbols = _standard(module, "running_mean", "running_var")
    return Doing("normalises with running_mean, running_var", symbols, "running")


def instance_norm(module: nn.Module, training: bool) -> Doing:
    """InstanceNorm; it ignores its counter, and reads a momentum of None as 0.

    It averages over a copy of its statistics for each sample, so that with momentum 0 rounding
    moves them all the same, unless the batch is 1, 2 or 4 samples.
    """
    held_batch = training and BATCH in vars(module)
    own = training or held_batch or not getattr(module, "track_running_stats", False)
    if not own:
        return running_statistics(module, training)
    writes = () if held_batch else _instance_writes(module)
    where = "of each channel of each sample over its positions"
    return _standardised(
        module, "normalises each sample with itself", where, "instance", writes,
        "channel of a sample",
    )  # fmt: skip


def group_norm(module: nn.Module, training: bool) -> Doing:
    """GroupNorm."""
    where = f"of each sample over each of {getattr(module, 'num_groups', '?')} groups of channels"
    return _standardised(
        module, "normalises each sample with itself", where, "group", (), "group in the batch"
    )


def layer_norm(module: nn.Module, training: bool) -> Doing:
    """LayerNorm."""
    where = f"of each sample {_over(module)}"
    return _standardised(module, "normalises each sample with itself", where, "sample", (), None)


def rms_norm(module: nn.Module, training: bool) -> Doing:
    """RMSNorm, of torch, transformers and timm."""
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    # torch takes the machine epsilon of the input where none is given.
    added = f"{eps:g}" if isinstance(eps, float) else "eps"
    symbols = f"y = {_scaled(module, f'x / sqrt(mean(x^2) + {added})')}"
    words = f"divides each sample by its root mean square {_over(module)}"
    return Doing(words, symbols, "sample")


def local_response_norm(module: nn.Module, training: bool) -> Doing:
    """LocalResponseNorm."""
    own: Any = module
    symbols = f"y = x / ({own.k:g} + {own.alpha:g} mean(x^2))^{own.beta:g}"
    words = f"divides each value by its {own.size} neighbouring channels"
    return Doing(words, symbols, "neighbours")


def _standardised(
    module: nn.Module,
    words: str,
    where: str,
    statistics: Statistics,
    writes: tuple[Write, ...],
    needs_two: Unit | None,
) -> Doing:
    symbols = f"{_standard(module, 'mean', 'var')}, mean and var {where}"
    return Doing(words, symbols, statistics, writes, needs_two=needs_two)


def _standard(module: nn.Module, mean: str, var: str) -> str:
    eps = getattr(module, "eps", None)
    added = f"{eps:g}" if isinstance(eps, float) else "eps"
    return f"y = {_scaled(module, f'(x - {mean}) / sqrt({var} + {added})')}"


def _scaled(module: nn.Module, core: str) -> str:
    scale = f"weight {core}" if _has(module, "weight") else core
    return f"{scale} + bias" if _has(module, "bias") else scale


def _over(module: nn.Module) -> str:
    shape = getattr(module, "normalized_shape", None)
    if shape is None or len(shape) < 2:
        return "over its last dimension"
    return f"over its last {len(shape)} dimensions"


def _has(module: nn.Module, name: str) -> bool:
    return isinstance(getattr(module, name, None), Tensor)


def _tracks(module: nn.Module, training: bool) -> bool:
    # A part that is frozen with stats="batch" says "does not track" while it trains.
    held_batch = training and BATCH in vars(module)
    return bool(getattr(module, "track_running_stats", False)) and not held_batch


def _batch_writes(module: nn.Module) -> tuple[Write, ...]:
    momentum: float | None = getattr(module, "momentum", 0.1)
    counts = _has(module, _COUNTER)
    found = []
    if momentum is not None or counts:
        found += _averaged(module, momentum, "batch mean", "batch variance (n-1)")
    if counts:
        found.append(Averaged(_COUNTER, f"{_COUNTER} + 1", even_if_it_raises=True))
    return tuple(found)


def _instance_writes(module: nn.Module) -> tuple[Write, ...]:
    momentum = getattr(module, "momentum", None) or 0.0
    if momentum == 0:
        names = (name for name in ("running_mean", "running_var") if _has(module, name))
        return tuple(Averaged(n, f"{n}, but for rounding", only_rounding=True) for n in names)
    return tuple(
        _averaged(module, momentum, "mean of the samples' means",
                  "mean of the samples' variances (n-1)")
    )  # fmt: skip


def _averaged(module: nn.Module, momentum: float | None, mean: str, var: str) -> list[Write]:
    """The running statistics and their rule; with momentum 0 not a bit of them moves."""
    pairs = (("running_mean", mean), ("running_var", var))
    return [
        Averaged(name, _average(name, momentum, new))
        for name, new in pairs
        if _has(module, name) and momentum != 0
    ]


def _average(old: str, momentum: float | None, new: str) -> str:
    if momentum is None:
        return f"(1 - 1/k) {old} + 1/k {new}, k = {_COUNTER} + 1"
    if momentum == 1:
        return new
    return f"{1 - momentum:g} {old} + {momentum:g} {new}"
