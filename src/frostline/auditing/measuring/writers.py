"""What writes to the tensors of a model while a step runs, in words."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType

from torch import nn
from torch.optim import Optimizer

from frostline._names import NamedTensor, named_modules
from frostline.auditing.measuring.one_step import OneStep
from frostline.auditing.measuring.raising import running
from frostline.guarding.pinpointing.dispatching import Ranges, WriteDispatch, extent

AGAIN = "in the backward"
"""Said of a module that runs once more for the backward, under activation checkpointing."""
_MOST = 2  # writers of one tensor that are told


class Writers:
    """Notes the operators that write to tensors of a model, with the module that is running.

    Below all dispatch modes that are there, as pinpointing does it. Writes that pass by the
    dispatcher (numpy, ``.data =``) are not seen.

    Args:
        model: the root.
        entries: its tensors.
        step: the step that runs, for the stage that it is in.

    Example:
        >>> import torch
        >>> from frostline._names import named_tensors
        >>> net = nn.Sequential(nn.BatchNorm1d(2))
        >>> step = OneStep(net, None, torch.randn(4, 2), None)
        >>> with Writers(net, named_tensors(net), step) as writers:
        ...     step.take()
        >>> writers.told(id(net[0].running_mean))
        'native_batch_norm in 0'
    """

    def __init__(self, model: nn.Module, entries: Iterable[NamedTensor], step: OneStep) -> None:
        self._step = step
        self._names = {id(module): name for name, module in named_modules(model)}
        self._seen: dict[str, dict[str, None]] = {}
        spans = {id(entry.tensor): extent(entry.tensor) for entry in entries}
        ranges = sorted((start, end, str(key)) for key, (start, end) in spans.items() if end)
        self._mode = WriteDispatch(Ranges(ranges), self._witness)

    def __enter__(self) -> Writers:
        self._mode.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self._mode.leave()

    def told(self, key: int) -> str:
        """What may have written a tensor, by its id; empty where nothing was seen."""
        seen = list(self._seen.get(str(key), ()))
        rest = len(seen) - _MOST
        return ", ".join(seen[:_MOST]) + (f" and {rest} more" if rest > 0 else "")

    def _witness(self, keys: list[str], operation: str, has_run: bool) -> None:
        if has_run:
            return
        words = self._words(operation.removeprefix("aten."), sys._getframe(1))
        for key in keys:
            self._seen.setdefault(key, {})[words] = None

    def _words(self, operation: str, frame: FrameType) -> str:
        for owner in running(frame):
            if isinstance(owner, Optimizer):
                return f"{type(owner).__name__}.step"
            if isinstance(owner, nn.Module) and id(owner) in self._names:
                again = f", {AGAIN}" if self._step.stage == "backward" else ""
                return f"{operation} in {self._names[id(owner)] or 'the model'}{again}"
        return f"{operation} in {self._step.stage}"
