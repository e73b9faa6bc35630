"""One microbatch in somebody's own loop, from before its forward until its backward begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from torch import nn

from frostline.accumulation.own_loop.in_parts import InParts
from frostline.accumulation.own_loop.surrounding import surrounding
from frostline.accumulation.ranks import Ranks
from frostline.accumulation.statistics.windows import RunningStatistics


class Seeing:
    """Sees the forwards of a model in one microbatch, whichever modules are called, how often.

    Nothing is in force between calls, so that whatever raises leaves nothing behind but how the
    modules are called, and that goes with ``end`` or ``drop``.

    Args:
        modules: whose calls may be a forward, or a part of one; see :func:`called`.
        statistics: what norms in them do to their running statistics.
        ranks: with which gradients are exchanged.
        count: microbatches in the window.
        last: this is the last of them.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        statistics: RunningStatistics,
        ranks: Ranks,
        count: int,
        last: bool,
    ) -> None:
        self.last = last
        self._statistics, self._ranks, self._count = statistics, ranks, count
        self._is_inside = False
        self._surroundings = ExitStack()
        self._surroundings.enter_context(surrounding(modules, self._call))

    def end(self) -> None:
        """The forward is over, and counts."""
        self._surroundings.close()
        if isinstance(self._statistics, InParts):
            self._statistics.take()

    def drop(self) -> None:
        """The microbatch does not count; those updates that torch has made stay."""
        self._surroundings.close()
        self._leave()

    @contextmanager
    def _call(self) -> Iterator[None]:
        if self._is_inside:
            yield
            return
        self._is_inside = True
        try:
            with self._ranks.exchanging(now=self.last), self._statistics.forward(self._count):
                yield
        except BaseException:
            self._leave()
            raise
        finally:
            self._is_inside = False

    def _leave(self) -> None:
        if isinstance(self._statistics, InParts):
            self._statistics.leave()


def called(model: nn.Module, ranks: Ranks) -> list[nn.Module]:
    """The model, and what in it has norms or exchanges gradients: parts may be called alone."""
    return list(dict.fromkeys([model, *ranks.modules, *_with_norms(model)]))


def _with_norms(module: nn.Module) -> list[nn.Module]:
    """It and those below that have running statistics, at or below them."""
    below = [found for child in module.children() for found in _with_norms(child)]
    # Buffers of a scripted module have no get().
    is_norm = "running_mean" in module._buffers and module._buffers["running_mean"] is not None
    return [module, *below] if below or is_norm else []
