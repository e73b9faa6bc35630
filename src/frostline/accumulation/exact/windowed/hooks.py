"""Hooks of parameters, which are to see the gradient of the window and not those of its pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def windows_hooks(models: Sequence[nn.Module]) -> Iterator[None]:
    """Hooks of parameters do not fire inside, and fire once at the end, as for the big batch."""
    parameters = {id(p): p for model in models for p in model.parameters()}
    hooked = [(p, _hooks(p)) for p in parameters.values() if any(_hooks(p))]
    with ExitStack() as aside:
        for _, both in hooked:
            for hooks in both:
                aside.enter_context(_emptied(hooks))
        yield
    for parameter, (before, after) in hooked:
        _fire(parameter, before, after)


def _hooks(parameter: Tensor) -> tuple[dict[int, Any], dict[int, Any]]:
    """Those that get the gradient, and those that get the parameter after it was added."""
    return parameter._backward_hooks or {}, parameter._post_accumulate_grad_hooks or {}


@contextmanager
def _emptied(hooks: dict[int, Any]) -> Iterator[None]:
    # In place: the engine refers to this very dict.
    kept = dict(hooks)
    hooks.clear()
    try:
        yield
    finally:
        hooks.update(kept)


def _fire(parameter: Tensor, before: dict[int, Any], after: dict[int, Any]) -> None:
    if parameter.grad is None:
        return
    for hook in before.values():
        changed = hook(parameter.grad)
        if changed is not None:
            parameter.grad = changed
    for hook in after.values():
        hook(parameter)
