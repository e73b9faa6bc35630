"""Models and losses whose big batch cannot be put together, refused before a window runs."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed import get_world_size, is_available, is_initialized

from frostline.accumulation.exact.recognising import first_time, forget
from frostline.accumulation.exact.unseen import unseen
from frostline.errors import AccumulationError, FrostlineWarning
from frostline.freezing.record import is_held
from frostline.probing.unjoinable import reduction, unjoined

_PLAIN = 'Pass batchnorm="plain" or "deferred"'
_SHARDED = ("FullyShardedDataParallel", "FSDPModule", "DeepSpeedEngine")


def refuse_model(model: nn.Module) -> None:
    """Refuse what cannot run several forwards at once, or hides its norms.

    Raises:
        AccumulationError: names the module.
    """
    for name, module in model.named_modules():
        reason = _reason(module)
        if reason is not None:
            where = name or type(model).__name__
            raise AccumulationError(f'{where}: batchnorm="exact" {reason}. {_PLAIN}')


def _reason(module: nn.Module) -> str | None:
    kinds = {cls.__name__ for cls in type(module).__mro__}
    if sharded := kinds.intersection(_SHARDED):
        return f"needs several forwards at once, which {sharded.pop()} does not allow"
    if isinstance(module, nn.SyncBatchNorm) and module.training and _ranks() > 1:
        return "joins the microbatches of one process, and this SyncBatchNorm joins the ranks"
    if isinstance(module, torch.jit.ScriptModule) and any(_hidden_norms(module)):
        return "cannot see the batch norms inside a scripted or traced module"
    return None


def _hidden_norms(module: nn.Module) -> Iterator[bool]:
    return (
        inner.training and "running_mean" in dict(inner.named_buffers(recurse=False))
        for inner in module.modules()
    )


def _ranks() -> int:
    return get_world_size() if is_available() and is_initialized() else 1


def refuse_sum(
    model: nn.Module, compute_loss: Callable[..., Any], microbatches: Sequence[Any]
) -> None:
    """Refuse a loss that is a sum over samples; looked at once for a model and a loss.

    Raises:
        AccumulationError: says what to write.
    """
    if first_time(model, compute_loss, "sum"):
        with unseen(model):
            found = reduction(model, compute_loss, microbatches)
        if found == "sum":
            forget(model, compute_loss, "sum")
            raise AccumulationError(
                "compute_loss gives a sum over samples: the same samples twice give twice the "
                "loss. The window's loss is a mean over items; expected a mean, as "
                'criterion(..., reduction="mean")'
            )


def refuse_coupling(
    model: nn.Module,
    compute_loss: Callable[..., Any],
    microbatches: Sequence[Any],
    items: Callable[[Any], Any] | None,
) -> None:
    """Refuse samples that see each other elsewhere than in a batch norm; looked at once.

    Raises:
        AccumulationError: names the modules, or the loss.
    """
    if first_time(model, compute_loss, "coupling"):
        with unseen(model):
            found = unjoined(model, compute_loss, microbatches, items=items)
        if found:
            forget(model, compute_loss, "coupling")
            names = ", ".join(coupler.name for coupler in found[:3])
            raise AccumulationError(
                f"{names}: the samples of a batch see each other here, and not through a call of "
                f"torch.nn.functional.batch_norm, so the big batch cannot be put together. {_PLAIN}"
            )


_told: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def say_once(model: nn.Module) -> None:
    """No norm looks across the batch. Where norms are held that is what was wanted.

    Warns:
        FrostlineWarning: once for a model.
    """
    if model not in _told and not any(map(is_held, model.modules())):
        _told.add(model)
        warnings.warn(
            f"no norm of this {type(model).__name__} looks across the batch, so each microbatch "
            'went by itself, which is exact, too; batchnorm="plain" says the same',
            FrostlineWarning,
            stacklevel=4,
        )
