"""A batch with other tensors in it."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

from torch import Tensor


def mapped(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch in the same form with every tensor changed.

    Example:
        >>> import torch
        >>> mapped({"a": (torch.ones(1), "text")}, lambda tensor: tensor + 1)
        {'a': (tensor([2.]), 'text')}
    """
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return _like(batch, {key: mapped(value, change) for key, value in batch.items()})
    if isinstance(batch, tuple | list):
        inner = [mapped(value, change) for value in batch]
        return type(batch)(*inner) if hasattr(batch, "_fields") else type(batch)(inner)
    return batch


def _like(batch: Mapping[Any, Any], values: dict[Any, Any]) -> Any:
    if type(batch) is dict or not isinstance(batch, MutableMapping):
        return values
    changed = copy.copy(batch)
    if isinstance(batch, UserDict):
        changed.data = values  # type: ignore[attr-defined]
        return changed
    for key, value in values.items():
        changed[key] = value
    return changed
