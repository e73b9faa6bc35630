"""The window, level by level: all microbatches forward from norm to norm, then back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from frostline._moments import Moments
from frostline.accumulation.exact.comparing import refuse_other
from frostline.accumulation.exact.forwards import Forwards
from frostline.accumulation.exact.recomputing import Recomputation, without_checkpoints
from frostline.accumulation.exact.windowed.hooks import windows_hooks
from frostline.accumulation.exact.windowed.microbatch import Microbatch
from frostline.accumulation.exact.windowed.outputs import output
from frostline.accumulation.exact.windowed.taping import taping
from frostline.lockstep.lockstep import Finished, Lockstep
from frostline.lockstep.norm_calls import NormCall
from frostline.lockstep.normalising import Statistics
from frostline.lockstep.shelving import Shelf
from frostline.lockstep.storing import Store
from frostline.lockstep.waiting import Waiting

Backward = Callable[[Tensor], Any]


def windowed(forwards: Forwards, backward: Backward, store: Store) -> set[int]:
    """Run the weighted losses of a window and their gradients, one microbatch at a time.

    Args:
        forwards: of the window.
        backward: what to do with each weighted loss.
        store: where waiting microbatches and saved tensors are kept.

    Returns:
        The ids of the buffers that were written.

    Raises:
        AccumulationError: the microbatches make different norm calls, or one cannot be joined.
    """
    shelf = Shelf(store, forwards.resident())
    with (
        taping(shelf),
        without_checkpoints(),
        windows_hooks(forwards.models),
        forwards.in_step(Waiting(shelf)) as lockstep,
    ):
        _Window(forwards, lockstep, shelf, backward).run()
        forwards.norm_calls = lockstep.runs[0].norm_calls
        return lockstep.updates.written


class _Window:
    def __init__(
        self, forwards: Forwards, lockstep: Lockstep, shelf: Shelf, backward: Backward
    ) -> None:
        self._model, self._lockstep, self._user_backward = forwards.model, lockstep, backward
        self._recomputation = Recomputation(forwards.models, lockstep)
        self._root = torch.zeros((), requires_grad=True)
        self._microbatches = [
            Microbatch(shelf, self._recomputation, self._root) for _ in lockstep.runs
        ]

    def run(self) -> None:
        waiting = self._level(None)
        while waiting is not None:
            waiting = self._level(waiting)
        self._lockstep.updates.finish()
        for level in reversed(range(len(self._microbatches[0].calls))):
            self._backward(level)

    def _level(self, waiting: _Level | None) -> _Level | None:
        """Every microbatch to its next norm call; None when they have come to their end."""
        steps: list[NormCall | Finished] = []
        moments = []
        for k, microbatch in enumerate(self._microbatches):
            step = self._lockstep.advance(k, self._output(k, waiting))
            refuse_other(self._model, k, step, steps[0] if steps else step)
            if isinstance(step, NormCall):
                moments.append(Moments.of(step.input))
                self._lockstep.suspend(k, partial(microbatch.cut, step))
            else:
                self._finish(microbatch, step.result)
                step = Finished(None)
            steps.append(step)
        calls = [step for step in steps if isinstance(step, NormCall)]
        return _Level(calls, Moments.merged(moments), self._lockstep) if calls else None

    def _output(self, number: int, level: _Level | None) -> Tensor | None:
        if level is None:
            return None
        self._lockstep.resume(number)
        joined = self._microbatches[number].calls[-1]
        call = level.calls[number]
        return output(call, joined, level.statistics, self._recomputation, self._root)

    def _finish(self, microbatch: Microbatch, loss: Tensor) -> None:
        """What comes after the last norm depends on no other microbatch."""
        microbatch.finish()
        if loss.requires_grad:  # not with a weight of 0
            with self._recomputation.backward():
                self._user_backward(loss)
        microbatch.put_aside()

    def _backward(self, level: int) -> None:
        parts = [microbatch.calls[level].sums for microbatch in self._microbatches]
        known = [part for part in parts if part is not None]
        sums = reduce(add, known) if known else None
        for microbatch in self._microbatches:
            with self._recomputation.backward():
                microbatch.backward(sums)


class _Level:
    """All microbatches at one norm call."""

    def __init__(self, calls: list[NormCall], moments: Moments, lockstep: Lockstep) -> None:
        self.calls = calls
        self.statistics = Statistics.of(moments, calls[0].eps)
        lockstep.updates.batch_norm(calls[0], moments)
