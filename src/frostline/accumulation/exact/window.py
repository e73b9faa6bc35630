"""The window as one big batch: gradients through the statistics of all microbatches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from frostline._batches import tensors_in
from frostline._state import collecting_young_only
from frostline.accumulation.arguments import nonfinite, refuse_nonfinite
from frostline.accumulation.exact.engines import Engine
from frostline.accumulation.exact.forwards import Forwards
from frostline.accumulation.gradients import set_aside
from frostline.accumulation.undoing import Before, all_or_nothing
from frostline.errors import AccumulationError


def exact(forwards: Forwards, engine: Engine, backward: Callable[[Tensor], Any] | None) -> Tensor:
    """Add the gradient of the big batch to ``.grad``, and return its loss, detached.

    Args:
        forwards: of the window.
        engine: how to run them.
        backward: called with a loss in place of its ``backward()``.

    Raises:
        AccumulationError: it cannot be exact. After any exception all is as before.
    """
    with (
        all_or_nothing(*forwards.models) as before,
        set_aside(forwards.model, (p for other in forwards.beside for p in other.parameters())),
        _uncompiled(),
        collecting_young_only(),
    ):
        written = engine.run(forwards, backward or Tensor.backward)
        losses = [forwards.losses[k] for k in sorted(forwards.losses)]
        if nonfinite(losses):
            if backward is None:
                _refuse_nonfinite(forwards, losses)
            before.restore_buffers()
        if written is not None:
            _refuse_unknown(before, written)
    return torch.stack(losses).sum()


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled code hides its norms; what is compiled runs as it was written."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _refuse_nonfinite(forwards: Forwards, losses: list[Tensor]) -> None:
    """The statistics carry it to all losses, so what came in is named, where it came in so."""
    for k, microbatch in enumerate(forwards.microbatches):
        floating = (tensor for tensor in tensors_in(microbatch) if tensor.is_floating_point())
        if not all(bool(tensor.isfinite().all()) for tensor in floating):
            raise AccumulationError(
                f"microbatch {k} holds values that are not finite, and so is the window's loss "
                f"{torch.stack(losses).sum().item()}; gradients and statistics are as before the "
                "window. Where a GradScaler is to skip it: "
                "backward=lambda loss: scaler.scale(loss).backward()"
            )
    refuse_nonfinite(losses)


def _refuse_unknown(before: Before, written: set[int]) -> None:
    for entry in before.changed():
        if id(entry.tensor) not in written:
            raise AccumulationError(
                f"{entry.name} of {type(entry.owner).__name__} was written to by each microbatch, "
                "where the big batch writes once, in a way that is not known. Freeze the module, "
                'or pass batchnorm="plain"'
            )
