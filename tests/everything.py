"""All that a call could have touched on a model, as one comparable value."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from frostline.freezing import optimizers


def bits(tensor: Tensor) -> bytes:
    """The bytes of a dense tensor."""
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def contents(model: nn.Module) -> dict[str, bytes]:
    """Bytes of every parameter and buffer, those outside of the state dict included."""
    return {name: bits(t) for name, t in [*model.named_parameters(), *model.named_buffers()]}


def forget_other_tests() -> None:
    """A dead model of another test may still wait for the collector, and keep the step hook."""
    gc.collect()
    optimizers.unwatch_steps_if_idle()


def everything(model: nn.Module, optimizer: Optimizer | None = None) -> dict[str, Any]:
    """Classes, attributes, hooks, modes, flags, gradients, bytes, and the optimizer's state.

    Objects enter by identity, so a restored attribute must be the very object it was.
    """
    return {
        "modules": {name: _module(m) for name, m in model.named_modules(remove_duplicate=False)},
        "tensors": [_tensor(t) for t in [*model.parameters(), *model.buffers()]],
        "step hooks": list(torch_optimizer._global_optimizer_pre_hooks),
        "optimizer": _optimizer(optimizer) if optimizer is not None else None,
    }


def without_versions(state: dict[str, Any]) -> dict[str, Any]:
    """A version counts writes, and can only go up: it is compared where it must stay."""
    state["tensors"] = [(t[0], t[1], *t[3:]) for t in state["tensors"]]
    return state


def _module(module: nn.Module) -> dict[str, Any]:
    shown: dict[str, Any] = {"class": type(module)}
    for name, value in vars(module).items():
        shown[name] = [(k, id(v)) for k, v in value.items()] if isinstance(value, dict) else value
        if not isinstance(value, dict | bool | int | float | str | type(None)):
            shown[name] = id(value)
    return shown


def _tensor(tensor: Tensor) -> tuple[Any, ...]:
    content = bits(tensor) if tensor.layout is torch.strided and not tensor.is_meta else None
    grad = tensor.grad
    return (
        id(tensor),
        tensor.requires_grad,
        tensor._version,
        content,
        (id(grad), bits(grad)) if grad is not None else None,
    )


def _optimizer(optimizer: Optimizer) -> list[Any]:
    state = {
        id(p): {k: bits(v) if isinstance(v, Tensor) else v for k, v in kept.items()}
        for p, kept in optimizer.state.items()
    }
    groups = [
        {k: [id(p) for p in v] if k == "params" else v for k, v in group.items()}
        for group in optimizer.param_groups
    ]
    return [state, groups]
