"""Places from which a forward cannot be suspended, found at the norm call."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType

from torch import nn
from torch.autograd import Function

from frostline._names import named_tensors
from frostline.errors import AccumulationError
from frostline.lockstep.thread_state import unmovable

_APPLY = Function.apply.__func__.__code__  # type: ignore[attr-defined]
_FORK_RNG = "fork_rng"


class Places:
    """Which tensors the models had at the start, and what may not be round a norm call."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        modules = [module for model in models for module in model.modules()]
        self._modules = [(module, _tensors(module)) for module in modules]

    def refuse(self, *, first: bool) -> None:
        """Raise if the norm call that is going on cannot wait for the others.

        Args:
            first: this is the first run; what all runs do alike is looked at only there.

        Raises:
            AccumulationError: names what is in the way.
        """
        reason = unmovable()
        if reason is None and first:
            reason = self._swapped() or _in_function(sys._getframe(1))
        if reason is not None:
            raise AccumulationError(
                f"a batch norm is called inside {reason}, where it cannot wait for the other "
                'microbatches; take it out of there, or pass batchnorm="plain"'
            )

    def _swapped(self) -> str | None:
        for module, before in self._modules:
            if _tensors(module) != before:
                return (
                    "torch.func.functional_call, or something else that puts other tensors into "
                    f"{type(module).__name__},"
                )
        return None


def _tensors(module: nn.Module) -> list[int]:
    return [id(tensor) for tensor in module._parameters.values()]


def _in_function(frame: FrameType | None) -> str | None:
    """The autograd function whose forward is going on: its backward would run the norm again."""
    while frame is not None:
        if frame.f_code is _APPLY:
            cls = frame.f_locals["cls"]
            if cls.__name__ == "CheckpointFunction":
                return "a reentrant checkpoint (use_reentrant=True; pass use_reentrant=False)"
            return f"the forward of the autograd function {cls.__name__}"
        frame = frame.f_back
    return None


def name_of(model: nn.Module, *tensors: object) -> str | None:
    """The module of ``model`` that owns one of the tensors of a norm call."""
    wanted = {id(tensor) for tensor in tensors if tensor is not None}
    for entry in named_tensors(model):
        if id(entry.tensor) in wanted:
            return entry.name.rpartition(".")[0] or "(the model itself)"
    return None
