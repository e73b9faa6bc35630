"""Wrong arguments, answered with the line to write instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from frostline._names import named_tensors
from frostline.errors import BatchError
from frostline.freezing.arguments import check_model


def check(model: Any, microbatches: Any, batch: Any) -> None:
    """Refuse what is no model, no count, no batch.

    Raises:
        TypeError: for a wrong type.
        ValueError: for a count below 1.
        BatchError: for a model that cannot be run and put back.
    """
    check_model(model, "explain")
    if microbatches is not None:
        if isinstance(microbatches, bool) or not isinstance(microbatches, int):
            raise TypeError(
                f"microbatches={microbatches!r}: expected how many there are to a step, "
                "as microbatches=8"
            )
        if microbatches < 1:
            raise ValueError(f"microbatches={microbatches}: expected 1 or more")
    if batch is not None:
        _check_can_run(model, batch)


def _check_can_run(model: nn.Module, batch: Any) -> None:
    if isinstance(batch, DataLoader | Iterator):
        raise TypeError(
            f"batch is a {type(batch).__name__}; expected one batch: batch=next(iter(loader))"
        )
    lazy = [entry.name for entry in named_tensors(model) if is_lazy(entry.tensor)]
    if lazy:
        raise BatchError(
            f"{lazy[0]} has no shape before the first forward, and a run that is put back would "
            "give it one for good. Call the model once, model(inputs), then ask again"
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise BatchError(
            f"{type(model).__name__} was scripted or traced, and such a run cannot be put back. "
            "Explain the model before it is scripted, or leave batch= away"
        )
    if any(entry.tensor.is_meta for entry in named_tensors(model)):
        raise BatchError(
            f"{type(model).__name__} is on the meta device and has no values to run with. Leave "
            "batch= away, or load its weights first"
        )
