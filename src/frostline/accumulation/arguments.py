"""Wrong arguments of accumulation, answered with the line to write instead."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from frostline._names import named_tensors
from frostline.accumulation.criteria import is_criterion
from frostline.errors import AccumulationError, BatchError

BatchNorm = Literal["exact", "deferred", "compensated", "plain"]
Offload = Literal["cpu", "disk", "auto"]

_CHOICES = ("exact", "deferred", "compensated", "plain")
_OFFLOADS = (None, "cpu", "disk", "auto")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B\s*", re.IGNORECASE)
_PREFIXES = ("", "K", "M", "G", "T")


def check(
    model: Any,
    compute_loss: Any,
    microbatches: Any,
    *,
    items: Any,
    batchnorm: Any,
    offload: Any,
    memory: Any,
    backward: Any,
) -> None:
    """Refuse what ``accumulate`` cannot work with.

    Raises:
        AccumulationError: a wrong model, function or option.
        BatchError: microbatches that are no list of batches.
    """
    _check_model(model, "accumulate(model, compute_loss, microbatches)")
    _check_compute_loss(compute_loss)
    _check_microbatches(microbatches)
    _check_choice("batchnorm", batchnorm, _CHOICES)
    _check_choice("offload", offload, _OFFLOADS)
    bytes_of(memory)
    _check_function("items", items, "items=lambda batch: int((batch['labels'] != -100).sum())")
    _check_function("backward", backward, "backward=lambda loss: scaler.scale(loss).backward()")


def check_accumulator(
    model: Any,
    optimizer: Any,
    microbatches: Any,
    *,
    batchnorm: Any,
    max_grad_norm: Any,
    scaler: Any,
    scheduler: Any,
) -> None:
    """Refuse what ``Accumulator`` cannot work with.

    Raises:
        AccumulationError: names the argument, and the line to write.
    """
    _check_model(model, "Accumulator(model, optimizer, microbatches=8)")
    _check_optimizer(model, optimizer)
    if isinstance(microbatches, bool) or not isinstance(microbatches, int) or microbatches < 1:
        raise AccumulationError(
            f"microbatches={_told(microbatches)}: expected how many there are to a step, 1 or "
            "more: fl.Accumulator(model, optimizer, microbatches=8)"
        )
    if batchnorm == "exact":
        raise AccumulationError(
            'batchnorm="exact" needs all microbatches of a window at once, which your own loop '
            "gives one by one. Write fl.accumulate(model, compute_loss, microbatches), or pass "
            'batchnorm="deferred"'
        )
    _check_choice("batchnorm", batchnorm, _CHOICES[1:])
    _check_max_grad_norm(max_grad_norm)
    _check_scaler(scaler)
    _check_scheduler(scheduler)


def bytes_of(memory: Any) -> int | None:
    """Bytes that ``memory=`` allows, or None where it says nothing.

    Raises:
        AccumulationError: neither None nor a positive number of bytes nor such a text.

    Example:
        >>> bytes_of("4GB"), bytes_of("512 MiB"), bytes_of(1e6), bytes_of(None)
        (4000000000, 536870912, 1000000, None)
    """
    if memory is None:
        return None
    amount: float = -1.0
    if isinstance(memory, str) and (match := _SIZE.fullmatch(memory)):
        number, prefix, binary = match.groups()
        amount = float(number) * (1024 if binary else 1000) ** _PREFIXES.index(prefix.upper())
    elif isinstance(memory, int | float) and not isinstance(memory, bool):
        amount = float(memory)
    if not math.isfinite(amount) or amount < 1:
        raise AccumulationError(
            f"memory={memory!r}: expected the bytes that the window may take, as "
            'memory=4_000_000_000, memory="4GB" or memory="512MiB"; None for what is free'
        )
    return int(amount)


def checked_loss(loss: Any, model: nn.Module, number: int) -> Tensor:
    """What ``compute_loss`` returned for microbatch ``number``, as a scalar.

    Raises:
        AccumulationError: no tensor, not one number, no float, or without a gradient although a
            parameter of ``model`` is trainable.
    """
    where = f"compute_loss returned {_told(loss)} for microbatch {number}"
    if not isinstance(loss, Tensor):
        inner = isinstance(getattr(loss, "loss", None), Tensor)
        line = "return model(**batch).loss" if inner else "return criterion(model(x), y)"
        raise AccumulationError(f"{where}; expected the loss, a scalar tensor: {line}")
    if loss.numel() != 1:
        raise AccumulationError(
            f"{where}; expected a scalar, the mean over the items of the microbatch: "
            "return losses.mean()"
        )
    if not loss.is_floating_point():
        raise AccumulationError(f"{where}, of {loss.dtype}; expected a floating point loss")
    if not loss.requires_grad and any(p.requires_grad for p in model.parameters()):
        raise AccumulationError(f"{where}, which has no gradient: {_why_without_gradient()}")
    return loss.reshape(())


def nonfinite(losses: Sequence[Tensor]) -> list[int]:
    """Which losses are no finite numbers; read from the device at once for all.

    Example:
        >>> nonfinite([torch.tensor(1.0), torch.tensor(float("nan"))])
        [1]
    """
    finite = torch.isfinite(torch.stack([loss.detach() for loss in losses])).tolist()
    return [k for k, is_finite in enumerate(finite) if not is_finite]


def refuse_nonfinite(losses: Sequence[Tensor]) -> None:
    """Raise if the loss of a microbatch is no finite number.

    Raises:
        AccumulationError: names the microbatch.
    """
    bad = nonfinite(losses)
    if bad:
        others = f", and of {len(bad) - 1} more," if len(bad) > 1 else ""
        raise AccumulationError(
            f"the loss of microbatch {bad[0]}{others} is {losses[bad[0]].item()}; expected a "
            "finite number. Gradients and statistics are as before the window. Where a GradScaler "
            "is to skip it: backward=lambda loss: scaler.scale(loss).backward()"
        )


def _check_model(model: Any, line: str) -> None:
    if not isinstance(model, nn.Module):
        raise AccumulationError(f"model is {_told(model)}; expected an nn.Module first: fl.{line}")
    lazy = [entry.name for entry in named_tensors(model) if is_lazy(entry.tensor)]
    if lazy:
        raise AccumulationError(
            f"{lazy[0]} has no shape before the first forward; run one microbatch first: model(x)"
        )


def _check_compute_loss(compute_loss: Any) -> None:
    if not callable(compute_loss):
        raise AccumulationError(
            f"compute_loss is {_told(compute_loss)}; expected a function (model, batch) -> loss"
        )
    if is_criterion(compute_loss):
        raise AccumulationError(
            "`compute_loss` takes (model, batch) and returns the loss; you passed a criterion. "
            "Write: def compute_loss(model, batch): x, y = batch; return criterion(model(x), y)"
        )
    try:
        inspect.signature(compute_loss).bind(None, None)
    except TypeError:
        raise AccumulationError(
            f"compute_loss is called as compute_loss(model, batch), which {compute_loss!r} does "
            "not take. Write: def compute_loss(model, batch): ..."
        ) from None
    except ValueError:
        return  # written in C: its parameters are not known


def _check_microbatches(microbatches: Any) -> None:
    line = "microbatches = fl.split(batch, size=8)"
    if isinstance(microbatches, DataLoader):
        line = "it = iter(loader); microbatches = [next(it) for _ in range(4)]"
    elif isinstance(microbatches, Iterator):
        line = "microbatches = [next(it) for _ in range(4)]"
    elif (
        isinstance(microbatches, list | tuple) and microbatches and not _is_one_batch(microbatches)
    ):
        return
    raise BatchError(
        f"microbatches is {_told(microbatches)}; expected a list of the batches of one window. "
        f"Write: {line}"
    )


def _is_one_batch(value: Any) -> bool:
    """A tensor, a dict, a named tuple; inputs and labels, which microbatches of a kind are not."""
    if isinstance(value, Tensor | Mapping) or hasattr(value, "_fields"):
        return True
    if not isinstance(value, list | tuple) or not all(isinstance(t, Tensor) for t in value):
        return False
    return len({(tensor.dtype, tensor.dim()) for tensor in value}) > 1


def _check_choice(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        *rest, last = map(repr, choices)
        raise AccumulationError(f"{name}={value!r}: expected {', '.join(rest)} or {last}")


def _check_function(name: str, value: Any, line: str) -> None:
    if value is not None and not callable(value):
        raise AccumulationError(f"{name} is {_told(value)}; expected a function: {line}")


def _check_optimizer(model: nn.Module, optimizer: Any) -> None:
    if not isinstance(optimizer, Optimizer):
        inner = getattr(optimizer, "optimizer", None)
        hint = "; pass what it wraps: optimizer.optimizer" if isinstance(inner, Optimizer) else ""
        raise AccumulationError(
            f"optimizer is {_told(optimizer)}; expected a torch.optim.Optimizer{hint}"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise AccumulationError(
            "the optimizer has none of the model's parameters, so that no step would change it. "
            "Make it from this model: torch.optim.SGD(model.parameters(), lr=0.1)"
        )


def _check_max_grad_norm(value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise AccumulationError(
            f"max_grad_norm={value!r}: expected the largest norm of the gradient, above 0, or None"
        )


def _check_scaler(scaler: Any) -> None:
    wanted = ("scale", "unscale_", "step", "update")
    if scaler is not None and not all(callable(getattr(scaler, name, None)) for name in wanted):
        raise AccumulationError(
            f"scaler is {_told(scaler)}; expected a gradient scaler: torch.amp.GradScaler()"
        )


def _check_scheduler(scheduler: Any) -> None:
    if scheduler is None:
        return
    if isinstance(scheduler, ReduceLROnPlateau):
        raise AccumulationError(
            "scheduler is a ReduceLROnPlateau, whose step needs a metric; leave it out and call "
            "scheduler.step(metric) yourself after each evaluation"
        )
    if not callable(getattr(scheduler, "step", None)):
        raise AccumulationError(
            f"scheduler is {_told(scheduler)}; expected one with a step(), called once a window"
        )


def _why_without_gradient() -> str:
    if not torch.is_grad_enabled():
        return "gradients are disabled here. Take the call out of torch.no_grad()"
    return (
        "no trainable parameter went into it, or it was detached on the way. Leave out .item(), "
        ".detach() and torch.tensor(loss)"
    )


def _told(value: Any) -> str:
    """The kind of a wrong value, with its size where it has one."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}"
    if value is None or isinstance(value, str | int | float):
        return repr(value)
    name = type(value).__name__
    if isinstance(value, list | tuple):
        inner = ", ".join(_told(entry) for entry in value[:2])
        return f"a {name} of {len(value)}" + (f": {inner}" if inner else "")
    return f"a {name}"
