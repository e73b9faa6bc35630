"""A function mode in which norms say what they see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from frostline._moments import Moments
from frostline.errors import AccumulationError
from frostline.lockstep.norm_calls import NormCall, NormCalls, native_instance_norm
from frostline.lockstep.places import name_of
from frostline.recalibration.norms import Norm
from frostline.recalibration.populations import OverBatches, OverSamples

Population = OverBatches | OverSamples


class Observing(NormCalls):
    """Collects what each norm that takes part sees, over all batches that run inside.

    Args:
        model: the whole.
        norms: those that take part.

    Attributes:
        populations: what a norm saw, by the id of its running_mean, in the order of first calls.
        calls: how often each was called, by the same id.
        counted_up: how often each counter was raised, by its id.
    """

    def __init__(self, model: nn.Module, norms: Sequence[Norm]) -> None:
        super().__init__(model)
        self._model = model
        self._wanted = {id(norm.mean) for norm in norms}
        self.populations: dict[int, Population] = {}
        self.calls: Counter[int] = Counter()
        self.counted_up: Counter[int] = Counter()

    def batch_norm(self, call: NormCall) -> Tensor:
        """What lies outside answers it."""
        self.calls[id(call.running_mean)] += 1
        return super().batch_norm(call)

    def instance_norm(self, call: NormCall) -> Tensor:
        """Its samples are noted, and nothing is written."""
        key = id(call.running_mean)
        self.calls[key] += 1
        output = native_instance_norm(call.without_update())
        if key in self._wanted:
            population = self.populations.setdefault(key, OverSamples())
            assert isinstance(population, OverSamples)  # noqa: S101
            with torch._C.DisableTorchFunction():  # our own arithmetic is not the run's
                population.add(call.input)
        return output

    def counted(self, counter: Tensor, add: Callable[[], Tensor]) -> Tensor:
        """Done, since the norm may read it, and put back afterwards."""
        self.counted_up[id(counter)] += 1
        with torch.inference_mode(counter.is_inference()):
            return add()

    def add(self, call: NormCall, moments: Moments) -> None:
        """These are the moments of a call, or of that call in several batches.

        Raises:
            AccumulationError: they are not finite.
        """
        if not is_finite(moments):
            raise AccumulationError(
                f"the input of {self.name(call)} is not finite (NaN or infinite), so it has no "
                "statistics. Is the calibration set clean, and do the weights fit it?"
            )
        key = id(call.running_mean)
        if key in self._wanted:
            population = self.populations.setdefault(key, OverBatches())
            assert isinstance(population, OverBatches)  # noqa: S101
            population.add(moments)

    def name(self, call: NormCall) -> str:
        """The module that called, as far as its tensors tell."""
        own = (call.running_mean, call.weight, call.bias)
        return name_of(self._model, *own) or f"a norm of {call.input.shape[1]} channels"


def is_finite(moments: Moments) -> bool:
    """Whether no value was NaN or infinite."""
    return bool((moments.mean.isfinite() & moments.m2.isfinite()).all())
