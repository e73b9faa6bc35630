"""Wrong arguments, answered with the line to write instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.modules.loss import _Loss
from torch.utils.data import DataLoader

from frostline.freezing.arguments import check_model
from frostline.summaries.arguments import inner as inner


def check(model: Any, optimizer: Any, batch: Any, compute_loss: Any) -> None:
    """Refuse what is no model, no optimizer, no batch, no function of model and batch.

    Raises:
        TypeError: for a wrong type.
        ValueError: for a ``compute_loss`` that has no batch to be called with.
    """
    check_model(model, "audit")
    if optimizer is not None and inner(optimizer) is None:
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, no torch optimizer. Pass the object: "
            "fl.audit(model, optimizer=torch.optim.AdamW(model.parameters()))"
        )
    if isinstance(batch, DataLoader | Iterator):
        raise TypeError(
            f"batch is a {type(batch).__name__}; expected one batch: batch=next(iter(loader))"
        )
    _check_loss(compute_loss)
    if compute_loss is not None and batch is None:
        raise ValueError(
            "compute_loss is given and no batch to call it with: "
            "fl.audit(model, batch=next(iter(loader)), compute_loss=compute_loss)"
        )


def _check_loss(function: Any) -> None:
    if function is None or (callable(function) and not _is_criterion(function)):
        return
    kind = function.__name__ if isinstance(function, type) else type(function).__name__
    what = "a criterion" if callable(function) else f"{function!r}"
    raise TypeError(
        f"compute_loss is {what}, {kind}; it takes the model and the batch and returns the loss:\n"
        "  def compute_loss(model, batch):\n"
        "      x, y = batch\n"
        "      return criterion(model(x), y)"
    )


def _is_criterion(function: Any) -> bool:
    return isinstance(function, _Loss | nn.Module) or (
        isinstance(function, type) and issubclass(function, nn.Module)
    )
