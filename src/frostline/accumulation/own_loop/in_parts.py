"""Deferred statistics of microbatches that go forward in several parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import Tensor, nn

from frostline._state import write_bits
from frostline.accumulation.statistics.measuring import Waiting
from frostline.accumulation.statistics.running_statistics import Deferred


class InParts(Deferred):
    """Deferred statistics, of a microbatch that may call the model several times, or its parts.

    Each of these calls is a :meth:`forward`. To the norms they are one: calls are numbered across
    them, and counters go on. The microbatch counts when it is taken, as a whole.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.BatchNorm1d(1, momentum=None))
        >>> statistics = InParts(net)
        >>> for real, false in torch.tensor([[[0.0], [8.0]], [[2.0], [10.0]]]).unbind(1):
        ...     for part in (real, false):
        ...         with statistics.forward(1):
        ...             _ = net(torch.stack([part, part]))
        ...     statistics.take()
        >>> statistics.commit()
        >>> net[0].running_mean, net[0].num_batches_tracked
        (tensor([5.]), tensor(2))
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._is_forward = False
        self._new: list[Waiting] = []
        self._calls: Counter[int] = Counter()
        self._gone: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def forward(self, count: int) -> Iterator[None]:
        self._is_forward, self._earlier = True, Counter(self._calls)
        try:
            with self._advanced(), super().forward(count):
                yield
        finally:
            self._is_forward = False

    @contextmanager
    def _advanced(self) -> Iterator[None]:
        """Counters show the parts before."""
        values = [(counter, counter.clone()) for counter, _ in self._gone.values()]
        for counter, steps in self._gone.values():
            write_bits(counter, counter + steps)
        try:
            yield
        finally:
            for counter, value in values:
                write_bits(counter, value)

    def _tell(self, waiting: Waiting) -> None:
        if not self._is_forward:
            super()._tell(waiting)
            return
        buffer, number = waiting.key
        self._new.append(replace(waiting, number=number + self._earlier[buffer]))
        self._calls[buffer] += 1

    def _count(self, steps: list[tuple[Tensor, Tensor]]) -> None:
        if not self._is_forward:
            super()._count(steps)
            return
        for counter, new in steps:
            _, before = self._gone.get(id(counter), (counter, 0))
            self._gone[id(counter)] = counter, new + before

    def take(self) -> None:
        """The microbatch counts."""
        for waiting in self._new:
            self._tell(waiting)
        self._count(list(self._gone.values()))
        self.leave()

    def leave(self) -> None:
        """The microbatch does not count."""
        self._new, self._calls, self._gone = [], Counter(), {}
