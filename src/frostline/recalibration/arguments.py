"""Wrong arguments, answered with the line to write instead."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import Dataset

from frostline._names import named_tensors
from frostline.errors import BatchError
from frostline.freezing.arguments import check_model


def check(model: Any, batches: Any, method: Any, samples: Any) -> None:
    """Refuse what is no model, no set of batches, no method, no number.

    Raises:
        TypeError: for a wrong type.
        ValueError: for an unknown method, or a number below 1.
        BatchError: for a model that cannot be run and put back, or an iterator that can be gone
            through only once.
    """
    check_model(model, "recalibrate")
    if method not in ("layerwise", "merged"):
        raise ValueError(f"method={method!r}: expected 'layerwise' or 'merged'")
    _check_samples(samples)
    _check_batches(batches)
    if method == "layerwise" and isinstance(batches, Iterator):
        raise BatchError(
            f"batches is a {type(batches).__name__}, which has no length and can be gone through "
            'once: under method="layerwise" samples cannot be drawn evenly from it, nor can the '
            "memory be predicted. Pass list(batches) if that fits, a DataLoader, or "
            'method="merged"'
        )
    _check_can_run(model)


def _check_samples(samples: Any) -> None:
    if samples is None:
        return
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise TypeError(
            f"samples={samples!r}: expected how many samples to use, as samples=1024, or None "
            "for all"
        )
    if samples < 1:
        raise ValueError(f"samples={samples}: expected 1 or more, or None for all")


def _check_batches(batches: Any) -> None:
    one_batch = isinstance(batches, Tensor | Mapping | tuple)
    if one_batch:
        raise TypeError(
            f"batches is a {type(batches).__name__}, which is one batch; expected several. Write "
            "fl.recalibrate(model, [batch])"
        )
    if isinstance(batches, Dataset):
        raise TypeError(
            f"batches is a {type(batches).__name__}, which gives samples and no batches. Write "
            "fl.recalibrate(model, DataLoader(dataset, batch_size=32))"
        )
    if isinstance(batches, str | nn.Module) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches is a {type(batches).__name__}; expected a list of batches or a DataLoader: "
            "fl.recalibrate(model, loader)"
        )


def _check_can_run(model: nn.Module) -> None:
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise BatchError(
            f"{type(model).__name__} was scripted or traced, so its norms cannot be reached. "
            "Recalibrate the model before it is scripted"
        )
    for entry in named_tensors(model):
        if is_lazy(entry.tensor):
            raise BatchError(
                f"{entry.name} has no shape before the first forward. Call the model once, "
                "model(inputs), then recalibrate"
            )
        if entry.tensor.is_meta:
            raise BatchError(
                f"{entry.name} is on the meta device and has no values. Load the weights first"
            )
