"""The state of a model while a calibration set goes through it; all of it is put back."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from frostline._batches import tensors_in
from frostline._calling import call, failing_call
from frostline.behaviours.untouched import untouched
from frostline.errors import BatchError
from frostline.freezing.record import is_held
from frostline.recalibration.norms import Norm


@contextmanager
def calibrating(model: nn.Module, norms: Sequence[Norm]) -> Iterator[Counter[int]]:
    """Norms that take part in training mode, all else in eval mode; no gradients.

    Everything is put back, running statistics included: what is to stay is written afterwards.

    Yields:
        how often the forward of each of these norms ran, by the id of its running_mean.
    """
    ran: Counter[int] = Counter()
    with untouched(model, None, values=True), torch.no_grad():
        _set_modes(model, {id(norm.module) for norm in norms})
        for norm in norms:
            norm.module.register_forward_pre_hook(_counting(ran, id(norm.mean)))
        yield ran


def _set_modes(model: nn.Module, training: set[int]) -> None:
    for module in model.modules():
        if not is_held(module):
            # Past train() and every setter: these may drop caches or count the call.
            vars(module)["training"] = id(module) in training


def _counting(ran: Counter[int], key: int) -> Any:
    def count(module: nn.Module, inputs: Any) -> None:
        ran[key] += 1

    return count


def copied(batch: Any) -> Any:
    """A batch with tensors of its own: some models write to their input.

    Raises:
        BatchError: there is something in it that cannot be copied.
    """
    # Not by deepcopy alone, which would copy all that a view looks at.
    tensors = {id(tensor): tensor.clone() for tensor in tensors_in(batch)}
    try:
        return copy.deepcopy(batch, tensors)
    except TypeError as error:
        raise BatchError(
            f"a batch is a {type(batch).__name__} that cannot be copied: {error}"
        ) from None


def forward(model: nn.Module, batch: Any, number: int) -> None:
    """Run the model on one batch of the set.

    Raises:
        BatchError: it raised; the message says in which batch.
    """
    try:
        with failing_call(batch):
            call(model, batch)
    except BatchError as error:
        raise BatchError(f"batch {number}: {error}") from error.__cause__
