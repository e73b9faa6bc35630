"""Runs of one model, suspended at every norm that looks across the batch.

Each run is a greenlet in the caller's OS thread, so that any Python control flow can be suspended
in the middle; what torch keeps for the thread goes along (:mod:`frostline.lockstep.thread_state`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import greenlet
import torch
from torch import Tensor, nn

from frostline.errors import AccumulationError
from frostline.lockstep.holdings import Holdings
from frostline.lockstep.norm_calls import NormCall, NormCalls, native_batch_norm
from frostline.lockstep.places import Places
from frostline.lockstep.spectral import SpectralNorms
from frostline.lockstep.streams import streams
from frostline.lockstep.thread_state import ThreadState, put_random
from frostline.lockstep.updates import Updates
from frostline.lockstep.waiting import Waiting


@dataclass(frozen=True, eq=False)
class Finished:
    """A run came to its end.

    Attributes:
        result: what it returned.
    """

    result: Any


@dataclass(eq=False)
class Run:
    """One of the runs.

    Attributes:
        number: which one, from 0.
        norm_calls: norm calls so far.
        seen: how often it has met each thing that is to happen once for all runs.
        state: what torch keeps for its thread, while it is suspended.
    """

    number: int
    greenlet: greenlet.greenlet
    norm_calls: int = 0
    seen: Counter[int] = field(default_factory=Counter)
    state: ThreadState | None = None


class Lockstep:
    """Advance several runs of a model from norm call to norm call.

    Args:
        model: counters, instance norms and spectral norms in it act once for all runs, as in one
            forward of all their samples.
        runs: callables without arguments, one for each batch.
        waiting: where runs leave their memory while they wait; see ``suspend`` and ``resume``.
        batches: that of each run. What depends on one of them, no other run may use.
        beside: further modules that the runs call.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> batches = [torch.randn(3, 2), torch.randn(1, 2)]
        >>> with Lockstep(net, [lambda b=b: net(b) for b in batches]) as lockstep:
        ...     calls = [lockstep.advance(k) for k in range(2)]
        ...     ends = [lockstep.advance(k, call.input) for k, call in enumerate(calls)]
        >>> [list(end.result.shape) for end in ends]
        [[3, 1], [1, 1]]
    """

    def __init__(
        self,
        model: nn.Module,
        runs: Sequence[Callable[[], Any]],
        waiting: Waiting | None = None,
        *,
        batches: Sequence[Any] = (),
        beside: Sequence[nn.Module] = (),
    ) -> None:
        models = [model, *beside]
        self.waiting = waiting
        self.holdings = Holdings(batches, _tensors(models))
        self.places = Places(models)
        self.updates = Updates()
        self._mode = Interposition(models, self)
        self._spectral = SpectralNorms(models, self)
        self.runs = [Run(k, self._greenlet(run)) for k, run in enumerate(runs)]
        self._done: Counter[int] = Counter()
        self._current: Run | None = None
        self._closing = False

    def _greenlet(self, run: Callable[[], Any]) -> greenlet.greenlet:
        def body() -> Finished:
            with self._mode:
                return Finished(run())

        return greenlet.greenlet(body)

    def __enter__(self) -> Self:
        self._base = ThreadState.take()
        self._streams = streams(len(self.runs), self._base.random)
        self._spectral.install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """Throw out what is still suspended, newest first, before the caller goes on."""
        self._closing = True
        try:
            for run in reversed(self.runs):
                if not run.greenlet.dead and run.state is not None:
                    self._switch(run, lambda g: g.throw())
        finally:
            self._spectral.remove()
            self._base.put()
            if kind is None and self.runs and self.runs[0].state is not None:
                # Draws go on where the first run stopped.
                put_random(self.runs[0].state.random)

    @property
    def current(self) -> Run:
        """The run that is going on now.

        Raises:
            AccumulationError: none is; what calls is run a second time, by a backward.
        """
        if self._current is None:
            raise AccumulationError(
                "a norm is run again outside of the forward; only checkpoint with "
                "use_reentrant=False may do so"
            )
        return self._current

    @contextmanager
    def again(self, run: Run) -> Iterator[None]:
        """What happens inside, a run has done before: nothing is to happen a first time."""
        before, self._current = self._current, run
        try:
            yield
        finally:
            self._current = before

    def advance(self, number: int, output: Tensor | None = None) -> NormCall | Finished:
        """Go on with a run to its next norm call or its end.

        Args:
            number: which run.
            output: what the norm call returns that it waits at; None for the start.

        Raises:
            AccumulationError: something is in force at the call that cannot be suspended.
        """
        run = self.runs[number]
        if run.state is None:
            run.greenlet.gr_context = copy_context()
            run.state = ThreadState.take()
            run.state.random = self._streams[number]
        return self._switch(run, lambda g: g.switch() if output is None else g.switch(output))

    def _switch(
        self, run: Run, go: Callable[[greenlet.greenlet], NormCall | Finished]
    ) -> NormCall | Finished:
        assert run.state is not None  # noqa: S101
        before, self._current = self._current, run
        self.resume(run.number)
        run.state.put()
        try:
            return go(run.greenlet)
        finally:
            run.state = ThreadState.take()
            self._base.put()
            self._current = before

    def suspend(self, number: int, cut: Callable[[list[Tensor]], None] | None = None) -> None:
        """Put the memory of a run aside, after ``advance`` came to a norm call.

        Args:
            number: which run.
            cut: is given the tensors first that the run holds.
        """
        if self.waiting is not None:
            self.waiting.suspend(number, self.holdings, cut)

    def resume(self, number: int) -> None:
        """Bring the memory of a run back, so that the input of its norm call can be read."""
        if self.waiting is not None:
            self.waiting.resume(number)

    def first_time(self, thing: object) -> bool:
        """Whether no run has come to this use of ``thing`` before; counts one use of it."""
        key, run = id(thing), self.current
        run.seen[key] += 1
        if run.seen[key] <= self._done[key]:
            return False
        self._done[key] = run.seen[key]
        return True

    def differentiate(self, gradients: Callable[[], Any]) -> Any:
        """The current run asks autograd for gradients by itself."""
        try:
            return gradients()
        except RuntimeError as error:
            if isinstance(error, AccumulationError) or not self.current.norm_calls:
                raise
            raise AccumulationError(
                "compute_loss differentiates by itself (a gradient penalty, torch.autograd.grad) "
                "through a batch norm, whose gradient is complete only with the other "
                'microbatches. Take it out of compute_loss, or pass batchnorm="plain"'
            ) from error

    def wait(self, call: NormCall) -> Tensor:
        """Suspend the current run at a norm call; the output comes from ``advance``."""
        if self._closing:
            return native_batch_norm(call.without_update())
        self.current.norm_calls += 1
        self.places.refuse(first=self.current.number == 0)
        hub = self.current.greenlet.parent
        assert hub is not None  # noqa: S101
        output: Tensor = hub.switch(call)
        return output


def _tensors(models: Sequence[nn.Module]) -> Iterator[Tensor]:
    for model in models:
        yield from model.parameters()
        yield from model.buffers()


_DIFFERENTIATING = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}


class Interposition(NormCalls):
    """What norms in a run meet."""

    def __init__(self, models: Sequence[nn.Module], lockstep: Lockstep) -> None:
        super().__init__(*models)
        self._lockstep = lockstep

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """See what each run makes of its batch, and what it holds."""
        lockstep, given = self._lockstep, (args, kwargs) if kwargs else args
        if lockstep.waiting is not None:
            lockstep.waiting.before(func, given)
        if func in _DIFFERENTIATING:
            result = lockstep.differentiate(lambda: func(*args, **(kwargs or {})))
        else:
            result = super().__torch_function__(func, types, args, kwargs)
        lockstep.holdings.note(lockstep.current.number, func, given, result)
        return result

    def batch_norm(self, call: NormCall) -> Tensor:
        """Wait for the other runs."""
        return self._lockstep.wait(call)

    def instance_norm(self, call: NormCall) -> Tensor:
        """Each sample by itself; the update is one for all runs."""
        return self._lockstep.updates.instance_norm(call, self._lockstep.current)

    def counted(self, counter: Tensor, add: Callable[[], Tensor]) -> Tensor:
        """Once for all runs."""
        self._lockstep.updates.written.add(id(counter))
        return add() if self._lockstep.first_time(counter) else counter
