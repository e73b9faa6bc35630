"""What the tests of the guard's behaviour share: a model with a life, and its training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Optimizer
from torch.optim import optimizer as torch_optimizer

import frostline as fl
from frostline.errors import FrostlineWarning
from tests.zoo import ZOO

ENTRY = ZOO["mlp_bn1d"]
BACKBONE = "backbone"

Deed = Callable[[nn.Module], object]


@contextmanager
def told() -> Iterator[list[warnings.WarningMessage]]:
    """Warnings of frostline, gathered; any other is an error as ever."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", FrostlineWarning)
        yield caught


def model_of(name: str = "mlp_bn1d") -> nn.Module:
    """A model of the zoo after two steps, the same bits at every call."""
    return ZOO[name].build()


def frozen(**how: Any) -> tuple[nn.Module, fl.types.FrozenPart]:
    """The small model with its backbone frozen and held."""
    model = ENTRY.build()
    return model, fl.freeze(model, BACKBONE, **how)


def flagged() -> nn.Module:
    """The small model with its backbone frozen by flags alone, and in eval mode."""
    model = ENTRY.build()
    model.backbone.requires_grad_(False).eval()
    return model


def head_optimizer(model: nn.Module, lr: float = 0.05) -> SGD:
    """The optimizer of the one who knows what is trainable."""
    return SGD(model.head.parameters(), lr=lr, momentum=0.9)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: int,
    deeds: Mapping[int, Deed] | None = None,
    *,
    scaler: GradScaler | None = None,
) -> None:
    """A real loop; before the forward of step n, ``deeds[n]`` does something to the model."""
    for number in range(1, steps + 1):
        if deeds and number in deeds:
            deeds[number](model)
        optimizer.zero_grad()
        loss = ENTRY.loss(model, ENTRY.batch())
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


def without_guard(steps: int) -> tuple[nn.Module, SGD]:
    """What a run comes to that nobody guards and nothing disturbs."""
    model = flagged()
    optimizer = head_optimizer(model)
    train(model, optimizer, steps)
    return model, optimizer


def bits(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    """The bytes of each."""
    return {
        name: t.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
        for name, t in tensors.items()
    }


def contents(model: nn.Module) -> dict[str, bytes]:
    """The bytes of all that a model consists of; no state dict, since a guard checks then."""
    return bits({**dict(model.named_parameters()), **dict(model.named_buffers())})


def backbone_bits(model: nn.Module) -> dict[str, bytes]:
    """The bytes of the frozen half."""
    return {k: v for k, v in contents(model).items() if k.startswith("backbone.")}


def state_bits(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter] | None = None
) -> list[dict[str, object]]:
    """The state of an optimizer, tensor by tensor; of these parameters, or of all it has."""
    own = (p for group in optimizer.param_groups for p in group["params"])
    return [
        {k: bits({k: v})[k] if isinstance(v, Tensor) else v for k, v in optimizer.state[p].items()}
        for p in (own if parameters is None else parameters)
        if p in optimizer.state
    ]


def nudge(model: nn.Module) -> None:
    """In place, within no_grad: a callback that averages or clips does so."""
    with torch.no_grad():
        model.backbone[0].weight[0, 0] += 1.0


def globals_of_torch() -> dict[str, object]:
    """All that a guard may hang into the process."""
    import sys
    import threading

    size = torch._C._len_torch_dispatch_stack()
    return {
        "load_state_dict": vars(nn.Module)["load_state_dict"],
        "_apply": vars(nn.Module)["_apply"],
        "apply": vars(nn.Module)["apply"],
        "state_dict": vars(nn.Module)["state_dict"],
        "scaler": vars(GradScaler)["step"],
        "pre": list(torch_optimizer._global_optimizer_pre_hooks.items()),
        "post": list(torch_optimizer._global_optimizer_post_hooks.items()),
        "module hooks": len(nn.modules.module._global_forward_hooks)
        + len(nn.modules.module._global_forward_pre_hooks),
        "modes": [torch._C._get_dispatch_stack_at(i) for i in range(size)],
        "trace": sys.gettrace(),
        "threads": threading.gettrace(),
        "grad": torch.is_grad_enabled(),
    }
