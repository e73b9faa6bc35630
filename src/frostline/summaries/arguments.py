"""Wrong arguments, answered with the line to write instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer
from torch.utils.data import DataLoader

from frostline.freezing.arguments import check_model


def check(model: Any, optimizer: Any, batch: Any) -> None:
    """Refuse what is no model, no optimizer, no batch.

    Raises:
        TypeError: for a wrong type.
    """
    check_model(model, "summary")
    if optimizer is not None and inner(optimizer) is None:
        raise TypeError(
            f"optimizer is a {type(optimizer).__name__}, no torch optimizer. Pass the object: "
            "fl.summary(model, optimizer=torch.optim.AdamW(model.parameters()))"
        )
    if isinstance(batch, DataLoader | Iterator):
        raise TypeError(
            f"batch is a {type(batch).__name__}; expected one batch: batch=next(iter(loader))"
        )


def inner(optimizer: Any) -> Optimizer | None:
    """The torch optimizer, behind the wrappers that trainers put around it; None if it is none."""
    wrapped = getattr(optimizer, "optimizer", None)
    if isinstance(wrapped, Optimizer):
        return wrapped
    return optimizer if isinstance(optimizer, Optimizer) else None
