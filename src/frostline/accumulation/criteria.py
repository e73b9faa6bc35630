"""Criteria, which people pass where a function of model and batch is wanted."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from torch import nn
from torch.nn import functional as F

# First and second parameters of functions that compare outputs with targets.
_OUTPUTS = {"input", "output", "outputs", "pred", "preds", "prediction", "predictions"}
_OUTPUTS |= {"logits", "y_pred", "y_hat"}
_TARGETS = {"target", "targets", "label", "labels", "y", "y_true", "truth"}


def is_criterion(function: Any) -> bool:
    """Whether it compares outputs with targets: a loss of torch or somebody's own.

    Example:
        >>> is_criterion(nn.CrossEntropyLoss()), is_criterion(F.mse_loss)
        (True, True)
        >>> is_criterion(lambda model, batch: model(batch).mean())
        False
    """
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    if isinstance(inner, nn.Module):
        return True
    owner = getattr(inner, "__self__", None)
    if isinstance(owner, nn.Module) and inner.__name__ in ("forward", "__call__"):
        return True
    return any(inner is known for known in vars(F).values()) or _compares(function)


def _compares(function: Any) -> bool:
    """Whether its first parameters are outputs and targets, by their names."""
    try:
        names = list(inspect.signature(function).parameters)[:2]
    except (TypeError, ValueError):
        return False
    return len(names) == 2 and names[0].lower() in _OUTPUTS and names[1].lower() in _TARGETS
