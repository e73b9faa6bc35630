"""A run without memory that leaves nothing behind: modes, gradients, optimizer, log."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from frostline.behaviours.untouched import untouched
from frostline.summaries.shapes_only import not_logged, shapes_only


@contextmanager
def kept(model: nn.Module, optimizer: Optimizer | None) -> Iterator[FakeTensorMode]:
    """Everything is computed without memory, and everything that Python can change is put back."""
    with ExitStack() as stack:
        stack.enter_context(not_logged())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(untouched(model, None, values=False))
        if optimizer is not None:
            stack.enter_context(_optimizer_kept(optimizer))
        yield stack.enter_context(shapes_only())


@contextmanager
def _optimizer_kept(optimizer: Optimizer) -> Iterator[None]:
    """Its attributes, groups and state by object: the bytes of no tensor are written in the run."""
    attributes = dict(vars(optimizer))
    contents = [(held, _opened(held)) for held in _containers(optimizer)]
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    leaves = [(p, p.grad, p.requires_grad) for p in parameters if p.is_leaf]
    try:
        yield
    finally:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        for held, content in contents:
            _fill(held, content)
        for p, gradient, requires_grad in leaves:
            p.grad = gradient
            if p.requires_grad is not requires_grad:
                p.requires_grad_(requires_grad)


def _containers(optimizer: Optimizer) -> Iterator[Any]:
    """Every dict and list in it, at whatever depth; parameters are keys, and no containers."""
    waiting: list[Any] = list(vars(optimizer).values())
    seen: set[int] = set()
    while waiting:
        held = waiting.pop()
        if not isinstance(held, dict | list | set) or id(held) in seen:
            continue
        seen.add(id(held))
        yield held
        waiting.extend(held.values() if isinstance(held, dict) else held)


def _opened(held: Any) -> Any:
    # An empty container of its own kind would do the same; a dict may have a default.
    return dict(held) if isinstance(held, dict) else copy.copy(held)


def _fill(held: Any, content: Any) -> None:
    held.clear()
    if isinstance(held, list):
        held.extend(content)
    else:
        held.update(content)
