"""What an Accumulator cannot work with, and what may not be given to its methods."""

from __future__ import annotations

import math
import sys
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import LBFGS

from frostline.errors import AccumulationError


def refuse_unfit(model: nn.Module, optimizer: Any, scaler: Any) -> None:
    """Refuse what does not go with windows of microbatches.

    Raises:
        AccumulationError: names it, and what to use instead.
    """
    if isinstance(optimizer, LBFGS):
        raise AccumulationError(
            "LBFGS computes the loss again inside of its step, through a closure; an Accumulator "
            "has no microbatches any more at that time. Use fl.accumulate in the closure"
        )
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise AccumulationError(
            "nn.DataParallel runs copies of the model in threads, whose norms cannot be seen. Use "
            "torch.nn.parallel.DistributedDataParallel"
        )
    if any(isinstance(module, _fsdp1()) for module in model.modules()):
        raise AccumulationError(
            "FullyShardedDataParallel (FSDP1) keeps gradients where an Accumulator cannot weigh "
            "them. Use torch.distributed.fsdp.fully_shard"
        )
    if scaler is not None and not isinstance(scaler, GradScaler):
        raise AccumulationError(
            f"scaler is a {type(scaler).__name__}; expected a torch.amp.GradScaler, which can say "
            "whether it left the step out"
        )


def _fsdp1() -> tuple[type, ...]:
    # Whoever has such a module has imported it.
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return () if fsdp is None else (fsdp.FullyShardedDataParallel,)


def checked_loss(loss: Any) -> Tensor:
    """The loss of a microbatch.

    Raises:
        AccumulationError: no scalar tensor of floats, or without a gradient.
    """
    if not isinstance(loss, Tensor):
        inner = isinstance(getattr(loss, "loss", None), Tensor)
        line = "acc.backward(model(**batch).loss)" if inner else "acc.backward(criterion(out, y))"
        raise AccumulationError(
            f"acc.backward got a {type(loss).__name__}; expected the loss, a scalar tensor: {line}"
        )
    if loss.numel() != 1 or not loss.is_floating_point():
        raise AccumulationError(
            f"acc.backward got a tensor {list(loss.shape)} of {loss.dtype}; expected one floating "
            "point number, the mean over the items of the microbatch: acc.backward(losses.mean())"
        )
    if not loss.requires_grad:
        why = (
            "no trainable parameter went into it, or .item() or .detach() took it out of the graph"
            if torch.is_grad_enabled()
            else "gradients are disabled here: take the call out of torch.no_grad()"
        )
        raise AccumulationError(f"acc.backward got a loss without a gradient: {why}")
    return loss


def checked_items(items: Any) -> int:
    """The items of a microbatch; each counts as one where nobody says.

    Raises:
        AccumulationError: no whole number above 0.

    Example:
        >>> checked_items(torch.tensor([1, -100, 2]).ne(-100).sum())
        2
    """
    number = items.item() if isinstance(items, Tensor) and items.numel() == 1 else items
    is_number = isinstance(number, Real) and not isinstance(number, bool)
    if is_number and float(number) == 0:
        raise AccumulationError(
            "items=0: the loss of a microbatch without items has no mean. Leave it out before "
            "acc.backward: if not items: continue"
        )
    if not is_number or not math.isfinite(number) or number < 0 or not float(number).is_integer():
        shown = f"a tensor {list(items.shape)}" if isinstance(items, Tensor) else repr(items)
        raise AccumulationError(
            f"items={shown}: expected over how many items the loss is a mean, 1 or more: "
            "items=len(y), or items=(labels != -100).sum()"
        )
    return int(number)
