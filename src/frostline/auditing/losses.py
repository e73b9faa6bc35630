"""The loss of one step, when the user gives a function for it and when nobody says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from frostline._batches import tensors_in
from frostline._calling import call, how_called
from frostline.errors import BatchError

ComputeLoss = Callable[[nn.Module, Any], Tensor]


def loss_of(model: nn.Module, batch: Any, compute_loss: ComputeLoss | None) -> tuple[Tensor, str]:
    """Run ``model`` on ``batch``: the loss, a scalar, and in words what it is.

    Without ``compute_loss``: the model's own ``.loss``, else the sum of a dict of losses, else the
    mean of its floating outputs, which stands in for a loss.

    Raises:
        BatchError: ``compute_loss`` returned no scalar tensor, or there is nothing to make a loss
            of.

    Example:
        >>> import torch
        >>> loss_of(nn.Linear(2, 1), torch.zeros(3, 2), None)[1]
        'the mean of the output of model(batch)'
    """
    if compute_loss is not None:
        return _scalar(compute_loss(model, batch), batch), "compute_loss(model, batch)"
    output, called = call(model, batch), how_called(batch)
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and _counts(own):
        return own.mean(), f"the loss of {called}"
    if _is_dict_of_losses(output):
        return sum(output.values()), f"the sum of the losses of {called}"
    return _mean(output, called), f"the mean of the output of {called}"


def _scalar(loss: Any, batch: Any) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1 and _counts(loss):
        return loss
    got = f"a tensor of {loss.dtype}, shape {list(loss.shape)}" if isinstance(loss, Tensor) else ""
    raise BatchError(
        f"compute_loss(model, batch) returned {got or type(loss).__name__}; expected one floating "
        "number in a tensor with its graph. Write a function that runs the model and returns the "
        "loss, e.g. compute_loss=lambda model, batch: criterion(model(batch[0]), batch[1])"
    )


def _is_dict_of_losses(output: Any) -> bool:
    """As detectors of torchvision give in training: names, each with a scalar."""
    return (
        isinstance(output, Mapping)
        and bool(output)
        and all(isinstance(v, Tensor) and v.dim() == 0 and _counts(v) for v in output.values())
    )


def _mean(output: Any, called: str) -> Tensor:
    found = [tensor for tensor in _floating(output) if tensor.numel()]
    means = [tensor.abs().mean() if tensor.is_complex() else tensor.mean() for tensor in found]
    if not means:
        raise BatchError(
            f"{called} gave {type(output).__name__} without floating tensors, so there is no loss. "
            "Pass compute_loss=lambda model, batch: ..."
        )
    total = means[0]
    for mean in means[1:]:
        total = total + mean
    return total


def _floating(output: Any) -> list[Tensor]:
    inner = list(tensors_in(output))
    if not inner and hasattr(output, "__dict__"):  # an output class of somebody's, not a mapping
        inner = list(tensors_in(vars(output)))
    return [tensor for tensor in inner if _counts(tensor)]


def _counts(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
