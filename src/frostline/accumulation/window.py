"""One window of microbatches, and the two ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from frostline.accumulation.arguments import Offload
from frostline.accumulation.exact.choosing import engine_for
from frostline.accumulation.exact.forwards import Forwards
from frostline.accumulation.exact.planning import Plan, plan_for
from frostline.accumulation.exact.refusals import (
    refuse_coupling,
    refuse_model,
    refuse_sum,
    say_once,
)
from frostline.accumulation.exact.window import exact
from frostline.accumulation.one_by_one import one_by_one
from frostline.accumulation.statistics.running_statistics import policy
from frostline.accumulation.statistics.windows import BatchNorm
from frostline.accumulation.weighing import counts, weights


class Window:
    """Checked arguments of ``accumulate``."""

    def __init__(
        self,
        model: nn.Module,
        compute_loss: Callable[[nn.Module, Any], Any],
        microbatches: Sequence[Any],
        items: Callable[[Any], Any] | None,
        backward: Callable[[Tensor], Any] | None,
    ) -> None:
        self._model, self._compute_loss, self._microbatches = model, compute_loss, microbatches
        self._items, self._backward = items, backward
        self._weights = weights(counts(microbatches, items))
        if items is None:
            refuse_sum(model, compute_loss, microbatches)

    def one_by_one(self, batchnorm: BatchNorm) -> Tensor:
        """Each microbatch by itself."""
        return one_by_one(
            self._model, self._compute_loss, self._microbatches, self._weights,
            policy(batchnorm, self._model), self._backward,
        )  # fmt: skip

    def exact(self, offload: Offload | None, memory: int | None) -> Tensor:
        """All as one batch."""
        refuse_model(self._model)
        refuse_coupling(self._model, self._compute_loss, self._microbatches, self._items)
        forwards = self._forwards()
        engine = engine_for(forwards, offload, memory, can_join=self._items is None)
        loss = exact(forwards, engine, self._backward)
        if forwards.norm_calls == 0:
            say_once(self._model)
        return loss

    def plan(self, memory: int | None) -> Plan:
        """How all as one batch would be run."""
        return plan_for(self._forwards(), memory, can_join=self._items is None)

    def _forwards(self) -> Forwards:
        return Forwards(self._model, self._compute_loss, self._microbatches, self._weights)
