"""What others do about batch norms under gradient accumulation: own code from the published rules.

Each is called like the real thing and does the whole of it: gradients are added, running statistics
written, the window's loss returned. None gives the big batch's gradients. A rule for recomputing
running statistics, fvcore's, stands at the end.

Norms are met at the function, so the rules hold for norms that are no ``nn.BatchNorm``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from frostline._batches import samples
from frostline._calling import call as called
from frostline.lockstep.norm_calls import NormCall, NormCalls, native_batch_norm

Batch = Any
ComputeLoss = Callable[[nn.Module, Batch], Tensor]
Approximation = Callable[[nn.Module, ComputeLoss, Sequence[Batch]], Tensor]


def plain(model: nn.Module, compute_loss: ComputeLoss, microbatches: Sequence[Batch]) -> Tensor:
    """What everyone does: each microbatch normalises by itself and updates the statistics."""
    return _accumulated(_Rule(model), model, compute_loss, microbatches)


def compensated(
    model: nn.Module, compute_loss: ComputeLoss, microbatches: Sequence[Batch]
) -> Tensor:
    """Plain, with the momentum of a microbatch so small that a window forgets as the batch would.

    m' = 1 - (1 - m)^(share of the window's items), hence 1 - (1 - m)^(1/K) for K equal ones.
    """
    return _accumulated(_Compensated(model), model, compute_loss, microbatches)


def torchgpipe_deferred(
    model: nn.Module, compute_loss: ComputeLoss, microbatches: Sequence[Batch]
) -> Tensor:
    """Plain, but one update of the statistics a window, from sums.

    Source: ``torchgpipe.batchnorm.DeferredBatchNorm`` (Kim et al. 2020, arXiv:2004.09910): the mean
    is sum(x) / n, the variance sum(x^2) / n - mean^2, without Bessel's correction, in the dtype of
    the buffers.
    """
    return _accumulated(_Deferred(model), model, compute_loss, microbatches)


def cmbn_like(model: nn.Module, compute_loss: ComputeLoss, microbatches: Sequence[Batch]) -> Tensor:
    """Microbatch k normalises with the average of the statistics of microbatches 1 to k.

    Gradients flow through its own share of that average. Statistics are updated once, with the
    average of the whole window.

    Source: CmBN of YOLOv4 (Bochkovskiy et al. 2020, arXiv:2004.10934, figure 4), which is CBN (Yao
    et al. 2021, arXiv:2002.05712) within one batch, hence without the compensation for weights that
    have changed.
    """
    return _accumulated(_CrossMinibatch(model), model, compute_loss, microbatches)


def window_constants(
    model: nn.Module, compute_loss: ComputeLoss, microbatches: Sequence[Batch]
) -> Tensor:
    """The obvious recipe: compute the window's statistics first, then use them as constants.

    The first pass is a forward of the joined window, so the statistics are exactly those of the big
    batch, at every depth: the rule's best case. What is lost is the gradient through them.
    """
    statistics = _Statistics(model)
    with torch.no_grad(), statistics:
        compute_loss(model, joined(microbatches))
    rule = _Constants(model, statistics.found)
    return _accumulated(rule, model, compute_loss, microbatches)


def big_batch(model: nn.Module, compute_loss: ComputeLoss, microbatches: Sequence[Batch]) -> Tensor:
    """The truth that the others are compared with."""
    loss = compute_loss(model, joined(microbatches))
    loss.backward()
    return loss.detach()


RULES: dict[str, Approximation] = {
    "plain": plain,
    "compensated": compensated,
    "torchgpipe": torchgpipe_deferred,
    "cmbn": cmbn_like,
    "window constants": window_constants,
}


def joined(microbatches: Sequence[Batch]) -> Batch:
    """One batch of them all; they are tensors, or tuples of tensors."""
    if isinstance(microbatches[0], Tensor):
        return torch.cat(list(microbatches))
    return tuple(joined(parts) for parts in zip(*microbatches, strict=True))


# --- the rules ---------------------------------------------------------------------------------


class _Rule(NormCalls):
    """A window of microbatches, one after the other.

    Attributes:
        share: items of this microbatch over those of the window.
        number: of this microbatch, from 1 on.
        place: of the next call of a norm within this microbatch, from 0 on.
    """

    share, number, place = 1.0, 0, 0

    def begin(self, share: float) -> None:
        self.share, self.number, self.place = share, self.number + 1, 0

    def finish(self) -> None:
        """What is left to be done at the end of the window."""

    def next_place(self) -> int:
        self.place += 1
        return self.place - 1


class _OncePerWindow(_Rule):
    """Batches are counted once a window: by the first microbatch."""

    def counted(self, counter: Tensor, add: Callable[[], Tensor]) -> Tensor:
        return add() if self.number == 1 else counter


class _Compensated(_Rule):
    def batch_norm(self, call: NormCall) -> Tensor:
        return native_batch_norm(replace(call, momentum=1 - (1 - call.momentum) ** self.share))


@dataclass
class _Sums:
    call: NormCall
    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0


class _Deferred(_OncePerWindow):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._sums: dict[int, _Sums] = {}

    def batch_norm(self, call: NormCall) -> Tensor:
        sums = self._sums.setdefault(self.next_place(), _Sums(call))
        x = call.input.detach()
        sums.count += x.numel() // x.shape[1]
        sums.total = sums.total + x.sum(_all_but_channels(x))
        sums.squares = sums.squares + x.square().sum(_all_but_channels(x))
        return native_batch_norm(call.without_update())

    def finish(self) -> None:
        for sums in self._sums.values():
            mean = sums.total / sums.count
            _update(sums.call, mean, sums.squares / sums.count - mean**2)


class _CrossMinibatch(_OncePerWindow):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._past: dict[int, tuple[NormCall, Tensor, Tensor]] = {}  # sums of means, of variances

    def batch_norm(self, call: NormCall) -> Tensor:
        x, place = call.input, self.next_place()
        variance, mean = torch.var_mean(x, _all_but_channels(x), correction=0)
        if place in self._past:
            _, means, variances = self._past[place]
            mean, variance = mean + means, variance + variances
        self._past[place] = call, mean.detach(), variance.detach()
        return _normalised(call, mean / self.number, variance / self.number)

    def finish(self) -> None:
        for call, means, variances in self._past.values():
            count = call.input.numel() // call.input.shape[1]
            _update(call, means / self.number, variances / self.number * count / (count - 1))


class _Statistics(_Rule):
    """Notes mean and variance of each call, in the order of the calls."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.found: list[tuple[Tensor, Tensor]] = []

    def batch_norm(self, call: NormCall) -> Tensor:
        x = call.input
        variance, mean = torch.var_mean(x, _all_but_channels(x), correction=0)
        self.found.append((mean, variance))
        return native_batch_norm(call)


class _Constants(_Rule):
    def __init__(self, model: nn.Module, statistics: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__(model)
        self._statistics = statistics

    def batch_norm(self, call: NormCall) -> Tensor:
        mean, variance = self._statistics[self.next_place()]
        return F.batch_norm(call.input, mean, variance, call.weight, call.bias, eps=call.eps)

    def counted(self, counter: Tensor, add: Callable[[], Tensor]) -> Tensor:
        return counter  # the first pass has counted


def _accumulated(
    rule: _Rule, model: nn.Module, compute_loss: ComputeLoss, microbatches: Sequence[Batch]
) -> Tensor:
    sizes = [samples(batch) for batch in microbatches]
    losses = []
    for batch, size in zip(microbatches, sizes, strict=True):
        rule.begin(size / sum(sizes))
        with rule:
            loss = compute_loss(model, batch) * rule.share
        loss.backward()
        losses.append(loss.detach())
    with torch.no_grad():
        rule.finish()
    return torch.stack(losses).sum()


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _normalised(call: NormCall, mean: Tensor, variance: Tensor) -> Tensor:
    shape = [1, -1] + [1] * (call.input.dim() - 2)
    y = (call.input - mean.view(shape)) * torch.rsqrt(variance + call.eps).view(shape)
    y = y if call.weight is None else y * call.weight.view(shape)
    return y if call.bias is None else y + call.bias.view(shape)


def _update(call: NormCall, mean: Tensor, variance: Tensor) -> None:
    for running, new in ((call.running_mean, mean), (call.running_var, variance)):
        if running is not None:
            running.mul_(1 - call.momentum).add_(new * call.momentum)


def precise_bn(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Recompute running statistics of a model in training mode by the rule of PreciseBN.

    Source: Wu and Johnson 2021, arXiv:2105.07576, appendix; ``fvcore.nn.update_bn_stats`` (default
    of fvcore 0.1.5.post20221221): means and mean squares of the batches are merged, weighted by
    their sizes, and the variance is their difference, without Bessel's correction. Upstream norms
    normalise each batch by itself.
    """
    rule = _Precise(model)
    with torch.no_grad():
        for batch in batches:
            rule.begin(1.0)
            with rule:
                called(model, batch)
        rule.finish()


class _Precise(_Rule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._merged: dict[int, _Sums] = {}

    def batch_norm(self, call: NormCall) -> Tensor:
        merged = self._merged.setdefault(self.next_place(), _Sums(replace(call, momentum=1.0)))
        variance, mean = torch.var_mean(call.input, _all_but_channels(call.input), correction=0)
        count = call.input.numel() // call.input.shape[1]
        merged.count += count
        merged.total = merged.total + (mean - merged.total) * (count / merged.count)
        squares = mean.square() + variance
        merged.squares = merged.squares + (squares - merged.squares) * (count / merged.count)
        return native_batch_norm(call.without_update())

    def finish(self) -> None:
        for merged in self._merged.values():
            mean = torch.as_tensor(merged.total)
            _update(merged.call, mean, merged.squares - mean.square())

    def counted(self, counter: Tensor, add: Callable[[], Tensor]) -> Tensor:
        return counter


def one_forward(model: nn.Module, batches: Sequence[Batch]) -> None:
    """The truth: statistics as one training forward of the whole set leaves them at momentum 1."""
    with torch.no_grad(), _Fresh(model):
        called(model, joined(batches))


class _Fresh(_Rule):
    def batch_norm(self, call: NormCall) -> Tensor:
        return native_batch_norm(replace(call, momentum=1.0))
