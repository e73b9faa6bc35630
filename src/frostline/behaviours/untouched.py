"""A forward of somebody's model that leaves nothing behind."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter

from frostline._batches import tensors_in
from frostline._names import named_tensors
from frostline._state import restoring, write_bits
from frostline.freezing.record import WATCH


@contextmanager
def untouched(model: nn.Module, batch: Any, *, values: bool) -> Iterator[None]:
    """Gradients are recorded, nothing is compiled, and everything is put back.

    Beside what :func:`frostline._state.restoring` knows: versions of tensors, lists in attributes
    of modules, the batch, and autocast's copies of weights.

    Args:
        model: the root.
        batch: its tensors are put back, too.
        values: whether the run can write bytes.
    """
    own = [entry.tensor for entry in named_tensors(model)]
    given = [tensor for tensor in tensors_in(batch) if not (values and tensor.is_meta)]
    before = [(tensor, tensor.detach().clone()) for tensor in given] if values else []
    with ExitStack() as stack:
        stack.enter_context(_versions_kept([*own, *given]))
        stack.enter_context(restoring(model, values=values))
        stack.enter_context(_memory_kept(own))
        stack.enter_context(_lists_kept(model))
        stack.enter_context(torch.inference_mode(False))  # enables gradients, too
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and loading it takes long
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in model.modules():
            vars(module).pop(WATCH, None)  # all is put back, so there is nothing to compare
        torch.clear_autocast_cache()
        try:
            yield
        finally:
            torch.clear_autocast_cache()
            for tensor, old in before:
                write_bits(tensor, old)


def _versions_kept(tensors: list[Tensor]) -> _unsafe_preserve_version_counter:
    # Tensors made under inference mode have no version.
    return _unsafe_preserve_version_counter(tuple(t for t in tensors if not t.is_inference()))


@contextmanager
def _memory_kept(tensors: list[Tensor]) -> Iterator[None]:
    """``weight.data = ...`` in a forward gives a tensor other memory, or none in a prediction."""
    plain = [t for t in tensors if t.layout is torch.strided and type(t) in (Tensor, nn.Parameter)]
    homes = [(tensor, tensor.detach()) for tensor in plain]
    try:
        yield
    finally:
        for tensor, home in homes:
            if _window(tensor) != _window(home):
                tensor.data = home


def _window(tensor: Tensor) -> tuple[Any, ...]:
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


@contextmanager
def _lists_kept(model: nn.Module) -> Iterator[None]:
    lists = [
        (value, list(value))
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, list)
    ]
    try:
        yield
    finally:
        for value, content in lists:
            value[:] = content
