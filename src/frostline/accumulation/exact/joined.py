"""Exact gradients by one graph: the microbatches' forwards meet at every norm, one backward.

It computes what the big batch computes and needs its memory, unless what autograd saves is kept
elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from frostline._moments import Moments
from frostline.accumulation.exact.comparing import refuse_other, waiting_calls
from frostline.accumulation.exact.forwards import Forwards
from frostline.accumulation.exact.recomputing import Recomputation
from frostline.lockstep.lockstep import Finished, Lockstep
from frostline.lockstep.norm_calls import NormCall
from frostline.lockstep.normalising import Statistics, Sums, input_gradient, normalise


def joined(forwards: Forwards, backward: Callable[[Tensor], Any]) -> set[int]:
    """Run the weighted losses of a window, and one backward through all of them.

    A model in which no norm looks across the batch takes one microbatch's memory.

    Args:
        forwards: of the window.
        backward: what to do with the window's loss, or with those of the microbatches in turn.

    Returns:
        The ids of the buffers that were written.

    Raises:
        AccumulationError: the microbatches make different norm calls, or one cannot be joined.
    """
    model = forwards.model
    with forwards.in_step() as lockstep:
        recomputation = Recomputation(forwards.models, lockstep)
        with recomputation.checkpoints():
            first = lockstep.advance(0)
            if isinstance(first, Finished):
                _one_by_one(model, lockstep, first, backward)
                forwards.norm_calls = 0
                return lockstep.updates.written
            loss = _forward(model, lockstep, first, recomputation)
        with recomputation.backward(), torch.autograd.set_multithreading_enabled(False):
            _backward(Finished(loss), backward)
        forwards.norm_calls = lockstep.runs[0].norm_calls
        return lockstep.updates.written


def _forward(
    model: nn.Module, lockstep: Lockstep, first: NormCall, recomputation: Recomputation
) -> Tensor:
    steps = [first, *(lockstep.advance(k) for k in range(1, len(lockstep.runs)))]
    while calls := waiting_calls(model, steps):
        outputs = _join(calls, lockstep, recomputation)
        steps = [lockstep.advance(k, output) for k, output in enumerate(outputs)]
    lockstep.updates.finish()
    loss: Tensor = reduce(add, (step.result for step in steps if isinstance(step, Finished)))
    return loss


def _one_by_one(
    model: nn.Module, lockstep: Lockstep, first: Finished, backward: Callable[[Tensor], Any]
) -> None:
    _backward(first, backward)
    for k in range(1, len(lockstep.runs)):
        step = lockstep.advance(k)
        refuse_other(model, k, step, first)
        assert isinstance(step, Finished)  # noqa: S101
        _backward(step, backward)
    lockstep.updates.finish()


def _backward(step: Finished, backward: Callable[[Tensor], Any]) -> None:
    if step.result.requires_grad:  # not with a weight of 0
        backward(step.result)


def _join(
    calls: list[NormCall], lockstep: Lockstep, recomputation: Recomputation
) -> Sequence[Tensor]:
    """The outputs of one norm call in all microbatches."""
    first, inputs = calls[0], [call.input for call in calls]
    moments = Moments.merged(map(Moments.of, inputs))
    statistics = Statistics.of(moments, first.eps)
    lockstep.updates.batch_norm(first, moments)
    recomputation.record(statistics)
    affine = [*(call.weight for call in calls), *(call.bias for call in calls)]
    with torch.set_grad_enabled(first.grad):
        outputs: tuple[Tensor, ...] = _Join.apply(  # type: ignore[no-untyped-call]
            recomputation, statistics, *inputs, *affine
        )
    return outputs


class _Join(torch.autograd.Function):
    """Inputs, weights and biases of all microbatches to their outputs."""

    @staticmethod
    def forward(
        ctx: Any, recomputation: Recomputation, statistics: Statistics, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        count = len(tensors) // 3
        inputs, weights, biases = (tensors[i * count : (i + 1) * count] for i in range(3))
        ctx.recomputation, ctx.statistics = recomputation, statistics
        ctx.save_for_backward(*inputs, *weights)
        ctx.set_materialize_grads(False)
        return tuple(
            normalise(x, weight, bias, statistics)
            for x, weight, bias in zip(inputs, weights, biases, strict=True)
            if x is not None
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outputs: Tensor | None) -> tuple[Any, ...]:
        ctx.recomputation.refuse_early()
        saved, count = ctx.saved_tensors, len(outputs)
        inputs, weights = saved[:count], saved[count:]
        known = {
            k: Sums.of(dy, inputs[k], ctx.statistics)
            for k, dy in enumerate(outputs)
            if dy is not None
        }
        if not known:
            return (None,) * (2 + 3 * count)
        sums = reduce(add, known.values())
        needed = ctx.needs_input_grad[2:]
        into_inputs = [
            _into(x, dy, weight, ctx.statistics, sums) if needed[k] else None
            for k, (x, dy, weight) in enumerate(zip(inputs, outputs, weights, strict=True))
        ]
        into_weights = [
            known[k].dy_x.to(weight.dtype) if needed[count + k] and k in known else None
            for k, weight in enumerate(weights)
        ]
        into_biases = [
            known[k].dy.to(_dtype_of(weights[k], inputs[k]))
            if needed[2 * count + k] and k in known
            else None
            for k in range(count)
        ]
        return (None, None, *into_inputs, *into_weights, *into_biases)


def _into(
    x: Tensor, dy: Tensor | None, weight: Tensor | None, statistics: Statistics, sums: Sums
) -> Tensor:
    # The loss of a microbatch reaches the inputs of the others through the statistics.
    return input_gradient(torch.zeros_like(x) if dy is None else dy, x, weight, statistics, sums)


def _dtype_of(weight: Tensor | None, x: Tensor) -> torch.dtype:
    return x.dtype if weight is None else weight.dtype
