"""``"layerwise"``: all batches wait at each norm, which normalises with the statistics of them all.

So each norm sees what it would see in one training-mode forward of the whole set, and how the set
is split makes no difference. One norm after the other, since a norm's input depends on those below.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from frostline._moments import Moments
from frostline.errors import AccumulationError
from frostline.lockstep.lockstep import Finished, Lockstep
from frostline.lockstep.norm_calls import NormCall
from frostline.lockstep.waiting import Waiting
from frostline.recalibration.calibration_set import Drawn
from frostline.recalibration.observing import Observing
from frostline.recalibration.populations import normalised
from frostline.recalibration.running import copied, forward

Step = NormCall | Finished | None


class Layerwise:
    """Takes all batches through a model from norm to norm together.

    Args:
        model: the model.
        drawn: the batches; each is loaded just before it starts.
        observing: is told of the moments of each norm call.
        waiting: takes what batches hold while they wait; None leaves it where it is.
        tick: called whenever a batch has come to a norm or to its end.
    """

    def __init__(
        self,
        model: nn.Module,
        drawn: Drawn,
        observing: Observing,
        waiting: Waiting | None,
        tick: Callable[[], None],
    ) -> None:
        assert drawn.expected is not None  # noqa: S101
        self._model, self._drawn = model, drawn
        self._observing, self._tick = observing, tick
        self._loaded: Any = None
        self._at: list[Step] = [None] * drawn.expected
        self._moments: list[Moments] = []
        runs = [partial(self._run, k) for k in range(drawn.expected)]
        self._lockstep = Lockstep(model, runs, waiting)

    def run(self) -> None:
        """From the start to the end.

        Raises:
            AccumulationError: batches come to different norms, or a norm cannot wait.
            BatchError: the model raised.
        """
        with self._lockstep:
            for k, batch in enumerate(self._drawn):
                self._loaded = copied(batch)
                del batch  # its run alone keeps one
                self._lockstep.holdings.claim(k, self._loaded)
                self._arrive(k, self._advance(k))
            while isinstance(self._same_for_all(), NormCall):
                joined = self._joined()
                for k in range(len(self._at)):
                    self._arrive(k, self._advance(k, self._output(k, joined)))

    def _run(self, k: int) -> None:
        batch, self._loaded = self._loaded, None
        with self._observing:
            forward(self._model, batch, k)

    def _advance(self, k: int, output: Tensor | None = None) -> Step:
        try:
            return self._lockstep.advance(k, output)
        except AccumulationError as error:
            raise AccumulationError(f'{error}. For fl.recalibrate: method="merged"') from None

    def _arrive(self, k: int, step: Step) -> None:
        if isinstance(step, NormCall):
            # At once, while its input is at hand.
            self._moments.append(Moments.of(step.input))
            self._lockstep.suspend(k)
        self._at[k] = step
        self._tick()

    def _same_for_all(self) -> Step:
        """Where all batches are.

        Raises:
            AccumulationError: they are not at the same place.
        """
        first = self._at[0]
        for k, other in enumerate(self._at):
            if _place(other) != _place(first):
                raise AccumulationError(
                    f"batch 0 comes to {self._told(first)} where batch {k} comes to "
                    f"{self._told(other)}; a norm has statistics of the whole set only where all "
                    'batches come to it. Use method="merged", or batches that go the same way'
                )
        return first

    def _told(self, step: Step) -> str:
        return self._observing.name(step) if isinstance(step, NormCall) else "its end"

    def _joined(self) -> Moments:
        """Of the norm call at which all wait."""
        joined, self._moments = Moments.merged(self._moments), []
        call = self._at[0]
        assert isinstance(call, NormCall)  # noqa: S101
        self._observing.add(call, joined)
        return joined

    def _output(self, k: int, joined: Moments) -> Tensor:
        # Taken out, so that its input is freed as soon as the run has no use for it.
        call, self._at[k] = self._at[k], None
        assert isinstance(call, NormCall)  # noqa: S101
        self._lockstep.resume(k)
        return normalised(call, joined)


def _place(step: Step) -> tuple[int, int, int] | None:
    """What tells one norm call from another: its buffers, its weight, its channels."""
    if not isinstance(step, NormCall):
        return None
    return id(step.running_mean), id(step.weight), step.input.shape[1]
