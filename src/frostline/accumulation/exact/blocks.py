"""The blocks of a model, which can be run again in backward and then keep nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks(model: nn.Module) -> list[nn.Module]:
    """What repeats: the entries of containers that hold several modules each, outermost first.

    So are found the stages' blocks of timm, torchvision and transformers, and those of a
    Sequential; never one inside another, and none twice.

    Example:
        >>> block = lambda: nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU())
        >>> len(blocks(nn.Sequential(nn.Linear(2, 2), block(), block())))
        2
    """
    found: dict[int, nn.Module] = {}
    _collect(model, found)
    return list(found.values())


def _collect(module: nn.Module, found: dict[int, nn.Module]) -> None:
    for child in module.children():
        is_container = isinstance(child, _CONTAINERS)
        if isinstance(module, _CONTAINERS) and _is_block(child):
            found[id(child)] = child
        elif is_container or any(True for _ in child.children()):
            _collect(child, found)


def _is_block(module: nn.Module) -> bool:
    """Something with parts that is no container of blocks itself."""
    parts = list(module.children())
    if len(parts) < 2 or isinstance(module, nn.ModuleList | nn.ModuleDict):
        return False
    return not (isinstance(module, nn.Sequential) and any(_is_block(part) for part in parts))


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[None]:
    """Each block runs under a non-reentrant checkpoint inside, where gradients are recorded."""
    with ExitStack() as stack:
        for block in blocks(model):
            stack.enter_context(_forward_is(block, _checkpointing(block)))
        yield


def _checkpointing(block: nn.Module) -> Any:
    forward = block.forward

    def run(*args: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **named)
        return checkpoint(forward, *args, use_reentrant=False, **named)

    return run


@contextmanager
def _forward_is(block: nn.Module, forward: Any) -> Iterator[None]:
    own = vars(block)
    before = own.get("forward")
    own["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before
