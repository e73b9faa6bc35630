"""How a model is run on a batch when nobody says otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from frostline.errors import BatchError, FrostlineError


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


@contextmanager
def failing_call(batch: Any) -> Iterator[None]:
    """Turn whatever the user's model raises on ``batch`` into one error that says what was called.

    Raises:
        BatchError: with the model's own error as its cause.
    """
    try:
        yield
    except FrostlineError:
        raise
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise BatchError(
            f"{how_called(batch)} raised {type(error).__name__}: {text}\n"
            "A dict is called as model(**batch), a tuple or list as model(batch[0]), anything else "
            "as model(batch). Pass the batch in the form that your model takes"
        ) from error
