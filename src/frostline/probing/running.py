"""What a probe runs: the model, or the loss that a user computes with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from torch import Tensor, nn

from frostline._calling import call
from frostline.errors import BatchError

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
Items: TypeAlias = Callable[[Any], Any]


def running(
    model: nn.Module, compute_loss: Loss | None, items: Items | None = None
) -> Callable[[Any], Any]:
    """A function of a batch.

    Args:
        model: the model.
        compute_loss: what is computed with it; without, its output.
        items: of how many items of a batch the loss is the mean. Then the function gives the sum.
    """
    if compute_loss is None:
        return lambda batch: call(model, batch)

    def total(batch: Any) -> Tensor:
        count = 1 if items is None else items(batch)
        return _scalar(compute_loss(model, batch)) * count

    return total


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shown = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise BatchError(
            f"compute_loss returned {shown}; expected the loss, a tensor of one number: "
            "return losses.mean()"
        )
    return loss
