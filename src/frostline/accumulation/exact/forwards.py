"""The forwards of one window."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from frostline._batches import joined, tensors_in
from frostline.accumulation.arguments import checked_loss
from frostline.lockstep.lockstep import Lockstep
from frostline.lockstep.waiting import Waiting
from frostline.probing.outside import modules_beside


class Forwards:
    """What runs in step, or as one.

    Args:
        model: the model.
        compute_loss: gives the mean loss over the items of a batch.
        microbatches: of the window.
        weights: their shares in its loss.

    Attributes:
        beside: other modules that ``compute_loss`` calls: a teacher, a discriminator.
        losses: what came so far, weighted and detached, by number.
        norm_calls: norms that looked across the batch, in one forward; None if nobody counted.
    """

    def __init__(
        self,
        model: nn.Module,
        compute_loss: Callable[[nn.Module, Any], Any],
        microbatches: Sequence[Any],
        weights: Sequence[float],
    ) -> None:
        self.model, self.microbatches = model, microbatches
        self.beside = modules_beside(model, compute_loss)
        self.losses: dict[int, Tensor] = {}
        self.norm_calls: int | None = None
        self._compute_loss, self._weights = compute_loss, weights

    def run(self, number: int) -> Tensor:
        """The weighted loss of one microbatch."""
        loss = self._loss(self.microbatches[number], number)
        # The mean over no items is NaN, which counts for nothing.
        weight = self._weights[number]
        loss = loss * weight if weight else loss.new_zeros(())
        self.losses[number] = loss.detach()
        return loss

    def whole(self) -> Tensor:
        """The loss of all microbatches as one batch.

        Raises:
            BatchError: they do not fit together.
        """
        loss = self._loss(joined(self.microbatches), 0)
        self.losses[0] = loss.detach()
        return loss

    def _loss(self, batch: Any, number: int) -> Tensor:
        return checked_loss(self._compute_loss(self.model, batch), self.model, number)

    @property
    def models(self) -> list[nn.Module]:
        """The model first."""
        return [self.model, *self.beside]

    def in_step(self, waiting: Waiting | None = None) -> Lockstep:
        """All of them, ready to start."""
        runs = [partial(self.run, k) for k in range(len(self.microbatches))]
        return Lockstep(self.model, runs, waiting, batches=self.microbatches, beside=self.beside)

    def resident(self) -> Iterator[Tensor]:
        """Tensors that stay where they are while a microbatch waits."""
        for model in self.models:
            yield from model.parameters()
            yield from model.buffers()
        yield from tensors_in(self.microbatches)
