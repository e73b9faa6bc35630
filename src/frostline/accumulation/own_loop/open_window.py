"""The open window of an Accumulator: what its microbatches have left so far, and how it ends."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from frostline.accumulation.own_loop.arguments import checked_items, checked_loss
from frostline.accumulation.own_loop.seeing import Seeing, called
from frostline.accumulation.own_loop.stepping import Stepping
from frostline.accumulation.own_loop.window_gradients import WindowGradients
from frostline.accumulation.ranks import Ranks
from frostline.accumulation.statistics.windows import RunningStatistics
from frostline.errors import AccumulationError, FrostlineWarning


class OpenWindow:
    """Microbatches since the last step.

    A microbatch of n items has the loss l, a mean over them. What goes backward is
    l n / (n_1 K), so that gradients have about the size of a mean whatever is still to come; at the
    end the gradient of the window is multiplied by n_1 K / N, N being the items of all
    microbatches, which makes it that of the mean over all items. On several ranks n_1 and N are
    means over ranks, as gradients are.

    Args:
        model: what is trained.
        count: microbatches that are announced, K.
        statistics: what becomes of running statistics.
        stepping: how the optimizer steps.

    Attributes:
        items: of the microbatches so far.
        losses: likewise, detached.
        reference: n_1.
        loss: the mean over the items of the last window that was stepped or skipped.
        steps: windows that were stepped.
        skipped: windows whose step the scaler left out.
    """

    def __init__(
        self, model: nn.Module, count: int, statistics: RunningStatistics, stepping: Stepping
    ) -> None:
        self.model, self.count = model, count
        self.statistics, self.stepping = statistics, stepping
        self.gradients = WindowGradients(model, stepping)
        self.ranks = Ranks(model)
        self.items: list[int] = []
        self.losses: list[Tensor] = []
        self.reference = 1.0
        self.loss: float | None = None
        self.steps = self.skipped = 0
        self._microbatch: Seeing | None = None
        self._called = called(model, self.ranks)

    # --- microbatches -------------------------------------------------------------------------

    @contextmanager
    def microbatch(self, last: bool | None) -> Iterator[None]:
        """One microbatch, up to its backward; without one it does not count.

        Args:
            last: whether the window ends with it; None: if it is full then.

        Raises:
            AccumulationError: another one is open.
        """
        if self._microbatch is not None:
            raise AccumulationError(
                "a microbatch of this Accumulator is open already; acc.iterate(loader) and "
                "acc.microbatch() each open one, and cannot be inside of each other. After an "
                "exception: acc.discard()"
            )
        if last is None:
            last = len(self.items) + 1 >= self.count
        if not self.items:
            self._called = called(self.model, self.ranks)
        mine = Seeing(self._called, self.statistics, self.ranks, self.count, last)
        self._microbatch = mine
        try:
            yield
        finally:
            if self._microbatch is mine:
                self.drop_microbatch()

    def drop_microbatch(self) -> None:
        """What is left without a backward does not count."""
        microbatch, self._microbatch = self._microbatch, None
        if microbatch is not None:
            microbatch.drop()
            if not self.items:
                self.statistics.commit()  # no window is open any more

    def backward(self, loss: Any, items: Any) -> Tensor:
        """Go backward from the loss of the open microbatch; step if it is the last one.

        Raises:
            AccumulationError: see :meth:`frostline.accumulation.accumulator.Accumulator.backward`.
        """
        microbatch = self._microbatch
        if microbatch is None:
            raise AccumulationError(
                "acc.backward(loss) is called once in each microbatch, inside of "
                "`for batch in acc.iterate(loader)` or `with acc.microbatch()`. Several losses "
                "of one microbatch are added: acc.backward(a + b)"
            )
        scalar, count = checked_loss(loss), checked_items(items)
        if not self.items:
            self.gradients.tell_of_old()
        self._microbatch = None
        with self._all_or_nothing():
            microbatch.end()
            self._go_backward(scalar, count, microbatch.last)
            if microbatch.last:
                self._end()
        return scalar.detach()

    def _go_backward(self, loss: Tensor, items: int, last: bool) -> None:
        if not self.items:
            self.open()
            (self.reference,) = self._mean_over_ranks(items)
        self.gradients.refuse_cleared()
        weighted = loss * (items / (self.reference * self.count))
        with self.ranks.exchanging(now=last), self.statistics.backward():
            self.stepping.scaled(weighted).backward()
        self.gradients.remember()
        self.items.append(items)
        self.losses.append(loss.detach().reshape(()))

    def open(self) -> None:
        """Begin: gradients of before are set aside, and only the window's end steps."""
        self.gradients.open()
        self.stepping.open()

    # --- the end ------------------------------------------------------------------------------

    def flush(self) -> None:
        """Step with what is there, if there is something."""
        self.drop_microbatch()
        if self.items:
            with self._all_or_nothing():
                self.ranks.exchange()
                self._end()

    def _end(self) -> None:
        self.gradients.close(self.reference * self.count / self._weigh())
        if self.stepping.step():
            self.statistics.commit()
            self.steps += 1
        else:
            self.statistics.discard()
            self.skipped += 1
        self._forget()

    def _weigh(self) -> float:
        """The items of the window, in the mean over ranks; its loss is known then.

        Raises:
            AccumulationError: the loss is no finite number, and nothing may skip the window.
        """
        losses = [loss.item() for loss in self.losses]
        here = sum(n * loss for n, loss in zip(self.items, losses, strict=True))
        loss, total = self._mean_over_ranks(here, sum(self.items))
        self.loss = loss / total
        if not math.isfinite(self.loss) and not self.stepping.may_skip:
            bad = [(k, x) for k, x in enumerate(losses) if not math.isfinite(x)]
            k, value = bad[0] if bad else (None, self.loss)
            where = "a microbatch on another rank" if k is None else f"microbatch {k} (from 0)"
            raise AccumulationError(
                f"the loss of {where} of the window is {value}; expected a finite number. Without "
                "a GradScaler nothing may skip the window. To leave such a microbatch out: "
                "if not loss.isfinite(): continue"
            )
        return total

    def _mean_over_ranks(self, *values: float) -> list[float]:
        return self.ranks.mean(values, self.gradients.leaves[0].device)

    def discard(self) -> None:
        """Drop what is there: gradients and statistics are as before the window."""
        self.drop_microbatch()
        self.gradients.discard()
        self.statistics.discard()
        self._forget()

    def _forget(self) -> None:
        self.stepping.close()
        self.items, self.losses = [], []

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.discard()
            error.add_note("The open window of the Accumulator was discarded.")
            raise

    def farewell(self) -> None:
        """The Accumulator dies."""
        there = len(self.items)
        self.discard()
        if there:
            warnings.warn(
                f"an Accumulator is gone whose window was open: {there} of {self.count} "
                "microbatches were never stepped. Call acc.flush() after your loop",
                FrostlineWarning,
                stacklevel=2,
            )
