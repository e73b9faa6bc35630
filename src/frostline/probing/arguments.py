"""Wrong arguments, answered with the line to write instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from frostline._calling import failing_call
from frostline._names import named_tensors
from frostline.errors import BatchError, FrostlineError
from frostline.freezing.arguments import check_model


def check(model: Any, batch: Any, compute_loss: Any) -> None:
    """Refuse what is no model, no batch, no function of both.

    Raises:
        TypeError: for a wrong type.
        BatchError: for a model that cannot be run and put back.
    """
    check_model(model, "coupling")
    if isinstance(batch, DataLoader | Iterator):
        raise TypeError(
            f"batch is a {type(batch).__name__}; expected one batch: "
            "fl.coupling(model, next(iter(loader)))"
        )
    _check_loss(compute_loss)
    _check_can_run(model)


def _check_loss(compute_loss: Any) -> None:
    if compute_loss is None or (
        callable(compute_loss) and not isinstance(compute_loss, nn.Module | type)
    ):
        return
    line = "compute_loss=lambda model, batch: criterion(model(batch[0]), batch[1])"
    raise TypeError(
        f"compute_loss is {_told(compute_loss)}; expected a function of the model and a batch, as "
        f"{line}"
    )


def _told(value: Any) -> str:
    if isinstance(value, nn.Module):
        return f"a module, {type(value).__name__}"
    return f"the class {value.__name__}" if isinstance(value, type) else f"{value!r}"


def _check_can_run(model: nn.Module) -> None:
    for entry in named_tensors(model):
        if is_lazy(entry.tensor):
            raise BatchError(
                f"{entry.name} has no shape before the first forward, and a run that is put back "
                "would give it one for good. Call the model once, model(inputs), then ask again"
            )
        if entry.tensor.is_meta:
            raise BatchError(
                f"{entry.name} is on the meta device and has no values to run with. Load the "
                "model's weights first"
            )


def microbatches_of(batch: Any) -> list[Any]:
    """The batch in a list, or the microbatches that it is a list of.

    Example:
        >>> len(microbatches_of([{"x": "one sample"}, {"x": "another"}]))
        2
        >>> len(microbatches_of(("inputs", "labels")))
        1
    """
    several = isinstance(batch, list) and bool(batch)
    if several and all(isinstance(each, Mapping | tuple | list) for each in batch):
        return list(batch)
    return [batch]


def failing(batch: Any, compute_loss: Any) -> AbstractContextManager[None]:
    """Turn whatever the user's code raises on the samples into one error."""
    return failing_call(batch) if compute_loss is None else _failing_loss()


@contextmanager
def _failing_loss() -> Iterator[None]:
    try:
        yield
    except FrostlineError:
        raise
    except Exception as error:
        text = str(error).strip().partition("\n")[0]
        raise BatchError(
            f"compute_loss(model, batch) raised {type(error).__name__}: {text}\n"
            "It was called with the batch that was given, or with a few of its samples in the same "
            "form. Run compute_loss(model, batch) yourself first"
        ) from error
