"""Norms that are run again in backward, by a non-reentrant checkpoint inside the model.

The recomputation gets the statistics of the window that its forward got, and updates nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from frostline.errors import AccumulationError
from frostline.lockstep.lockstep import Lockstep, Run
from frostline.lockstep.norm_calls import (
    NormCall,
    NormCalls,
    native_batch_norm,
    native_instance_norm,
    with_fresh_buffers,
)
from frostline.lockstep.normalising import Statistics, normalise


@contextmanager
def without_checkpoints() -> Iterator[None]:
    """Non-reentrant checkpoints that are met inside just run, and keep what autograd saves."""

    def generator(*args: Any, **named: Any) -> Iterator[None]:
        yield

    with _generator_is(generator):
        yield


@contextmanager
def updated_once(models: Sequence[nn.Module]) -> Iterator[None]:
    """Non-reentrant checkpoints that are met inside update statistics in forward only.

    torch's own update them a second time when they run again.
    """
    original = checkpoint._checkpoint_without_reentrant_generator

    def generator(fn: Callable[..., Any], *args: Any, **named: Any) -> Any:
        def recompute(*inputs: Any, **given: Any) -> Any:
            with _WithoutUpdates(*models):
                return fn(*inputs, **given)

        return original(recompute, *args, **named)

    with _generator_is(generator):
        yield


@contextmanager
def _generator_is(generator: Callable[..., Any]) -> Iterator[None]:
    """Stand in for a private function of torch: ``checkpoint`` is imported by name everywhere."""
    original = checkpoint._checkpoint_without_reentrant_generator
    checkpoint._checkpoint_without_reentrant_generator = generator
    try:
        yield
    finally:
        checkpoint._checkpoint_without_reentrant_generator = original


class _WithoutUpdates(NormCalls):
    """Norms of a checkpoint that is run again: the same kernels, but nothing is written."""

    def batch_norm(self, call: NormCall) -> Tensor:
        return native_batch_norm(with_fresh_buffers(call))

    def instance_norm(self, call: NormCall) -> Tensor:
        return native_instance_norm(with_fresh_buffers(call))

    def counted(self, counter: Tensor, add: Callable[[], Tensor]) -> Tensor:
        return counter


class Recomputation(_WithoutUpdates):
    """Answers the norms of a checkpoint that is run again.

    Args:
        models: whose norms these are.
        lockstep: of the forward.
    """

    def __init__(self, models: Sequence[nn.Module], lockstep: Lockstep) -> None:
        super().__init__(*models)
        self._lockstep = lockstep
        self._statistics: list[Statistics] = []
        self._region: Run | None = None
        self._active = False

    @contextmanager
    def backward(self) -> Iterator[None]:
        """The window's own backward goes on inside."""
        self._active = True
        try:
            yield
        finally:
            self._active = False

    def record(self, statistics: Statistics) -> None:
        """The statistics of the next norm call of the forward."""
        self._statistics.append(statistics)

    def refuse_early(self) -> None:
        """Raise if a gradient through a join is asked for before the window's own backward."""
        if not self._active:
            raise AccumulationError(
                "compute_loss differentiates through a batch norm by itself (a gradient penalty, "
                "torch.autograd.grad); the other microbatches' share of that gradient is missing. "
                'Take it out of compute_loss, or pass batchnorm="plain"'
            )

    @contextmanager
    def checkpoints(self) -> Iterator[None]:
        """Checkpoints that are made inside know later which norm calls they hold."""
        original = checkpoint._checkpoint_without_reentrant_generator

        def generator(fn: Callable[..., Any], *args: Any, **named: Any) -> Any:
            return original(self._again(fn), *args, **named)

        with _generator_is(generator):
            yield

    def _again(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        run = self._lockstep.current
        start = replace(run, seen=run.seen.copy())

        def recompute(*args: Any, **named: Any) -> Any:
            before, self._region = self._region, replace(start, seen=start.seen.copy())
            try:
                with self, self._lockstep.again(self._region):
                    return fn(*args, **named)
            finally:
                self._region = before

        return recompute

    def batch_norm(self, call: NormCall) -> Tensor:
        """Nothing is saved for it in the forward, so nothing may be saved here."""
        assert self._region is not None  # noqa: S101 -- active in a region only
        statistics = self._statistics[self._region.norm_calls]
        self._region.norm_calls += 1
        with torch.no_grad():
            output = normalise(call.input, call.weight, call.bias, statistics)
        return _with_graph(output) if call.grad else output


def _with_graph(output: Tensor) -> Tensor:
    """What follows saves its tensors, as in the forward; no gradient comes back to here."""
    root = torch.zeros((), requires_grad=True)
    found: Tensor = _Begin.apply([output], root)  # type: ignore[no-untyped-call]
    return found


class _Begin(torch.autograd.Function):
    """A tensor without a past, which may be written to in place, unlike a leaf."""

    @staticmethod
    def forward(ctx: Any, memory: list[Tensor], root: Tensor) -> Tensor:
        return memory[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None
