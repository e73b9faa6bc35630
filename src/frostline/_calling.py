"""How a model is run on a batch when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def call(model: nn.Module, batch: Any) -> Any:
    """The output of ``model`` on ``batch``: a dict by name, of a tuple or list the first.

    Example:
        >>> import torch
        >>> call(nn.Flatten(), (torch.zeros(3, 2, 2), "labels")).shape
        torch.Size([3, 4])
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0]) if isinstance(batch, tuple | list) else model(batch)


def how_called(batch: Any) -> str:
    """The same in words, for reports.

    Example:
        >>> how_called({"input_ids": 1})
        'model(**batch)'
    """
    if isinstance(batch, Mapping):
        return "model(**batch)"
    return "model(batch[0])" if isinstance(batch, tuple | list) else "model(batch)"
