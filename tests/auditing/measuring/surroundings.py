"""What `tests.everything` leaves out and a training step touches, as one comparable value."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks
from torch.utils._pytree import tree_leaves

from frostline.freezing.record import IGNORED
from frostline.guarding import rounds
from tests.everything import bits, everything


def surroundings(
    models: Iterable[nn.Module], optimizer: Optimizer | None, batch: Any
) -> dict[str, Any]:
    """All of several models, of an optimizer and a batch, and of the process."""
    models = list(models)
    return {
        "models": [everything(model, optimizer) for model in models],
        "gradients": [_version(p.grad) for m in models for p in m.parameters()],
        "inside": [_inside(vars(module)) for m in models for module in m.modules()],
        "ignored": [
            repr(vars(module).get(IGNORED)) for model in models for module in model.modules()
        ],
        "optimizer": _of_optimizer(optimizer),
        "batch": _inside(batch),
        "generators": [
            torch.get_rng_state().tolist(),
            random.getstate(),
            np.random.get_state()[1].tolist(),  # type: ignore[index,union-attr]
        ],
        "modes": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "dispatch": torch._C._len_torch_dispatch_stack(),
        "hooks": [list(_global_optimizer_post_hooks), list(rounds._listeners)],
    }


def _of_optimizer(optimizer: Optimizer | None) -> Any:
    if optimizer is None:
        return None
    own = {k: v for k, v in vars(optimizer).items() if k not in ("state", "param_groups")}
    states = [_inside(kept) for kept in optimizer.state.values()]
    return [_inside(own), {k: id(v) for k, v in own.items()}, states, id(optimizer.state)]


def _inside(value: Any) -> Any:
    """Containers by what is in them, tensors by object, bytes and version, the rest by object."""
    if isinstance(value, Tensor):
        return (id(value), _content(value), _version(value), value.requires_grad)
    if hasattr(value, "data") and isinstance(value.data, dict):
        return _inside(value.data)
    if isinstance(value, dict):
        return {str(key): _inside(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_inside(inner) for inner in value]
    return value if isinstance(value, bool | int | float | str) else id(value)


def _content(tensor: Tensor) -> bytes | None:
    dense = tensor.layout is torch.strided and not tensor.is_meta
    return bits(tensor) if dense else None


def _version(tensor: Tensor | None) -> int | None:
    return None if tensor is None or tensor.is_inference() else tensor._version


def leaves(value: Any) -> list[Tensor]:
    """The tensors in anything that torch's trees know."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
