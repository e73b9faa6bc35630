"""What an optimizer could still do to a frozen tensor, and the one hook that prevents it.

Optimizers look at ``.grad``, never at ``requires_grad``: a gradient from before the freeze, or one
written by hand after it, moves a frozen tensor, and momentum and decay go along. So ``.grad`` goes
at the freeze, and before every step while anything is held. Groups keep their layout.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from frostline.errors import FreezeError, FrozenStateChanged
from frostline.freezing import live_parts

_handle: RemovableHandle | None = None


def watch_steps() -> None:
    """Install the hook that runs before every step of every optimizer, once."""
    global _handle
    if _handle is None:
        _handle = register_optimizer_step_pre_hook(before_step)


def unwatch_steps_if_idle() -> None:
    """Remove the hook when nothing is held any more."""
    global _handle
    if _handle is not None and not live_parts.all_parts():
        _handle.remove()
        _handle = None


def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    """Clear gradients of frozen parameters, by identity; refuse optimizers that need none."""
    if torch.compiler.is_compiling():
        return
    frozen: set[int] = set()
    for part in live_parts.all_parts():
        _look_after(part, optimizer)
        for parameter in part.frozen_parameters():
            if parameter.grad is not None:
                parameter.grad = None
            frozen.add(id(parameter))
    if isinstance(optimizer, LBFGS):
        refuse_lbfgs(optimizer, frozen)


def _look_after(part: live_parts.LivePart, optimizer: Optimizer) -> None:
    try:
        part.look_after(about_to_train=True)
    except FrozenStateChanged:
        # A module replaced in one model must not stop the training of another.
        root = part.root_or_none()
        given = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if root is not None and any(id(p) in given for p in root.parameters()):
            raise


def refuse_lbfgs(optimizer: Optimizer, frozen: Iterable[int]) -> None:
    """LBFGS writes to all its parameters, with or without gradients.

    Raises:
        FreezeError: if a frozen parameter is among them.
    """
    known = set(frozen)
    held = sum(id(p) in known for group in optimizer.param_groups for p in group["params"])
    if isinstance(optimizer, LBFGS) and held:
        raise FreezeError(
            f"LBFGS writes to every parameter that it was given, with or without a gradient, and "
            f"{held} of them are frozen. Nothing was changed. Build it from the trainable ones: "
            "torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad])"
        )


@dataclass(eq=False)
class _Taken:
    """What a freeze took away from one parameter."""

    parameter: nn.Parameter
    gradient: Tensor | None = None
    states: list[tuple[ReferenceType[Optimizer], Any]] = field(default_factory=list)


# By parameter and not by part: overlapping parts may be undone in any order, and what was taken
# comes back when the last of them goes. It lives as long as the model that it was taken in: torch
# does not swap the content of a tensor that has a weak reference.
_aside: WeakIdKeyDictionary = WeakIdKeyDictionary()


def set_aside(
    model: nn.Module, parameters: Iterable[nn.Parameter], optimizer: Optimizer | None
) -> None:
    """Take ``.grad`` of these parameters of ``model``, and what ``optimizer`` keeps for them."""
    table: dict[int, _Taken] = _aside.setdefault(model, {})
    states = optimizer.state if optimizer is not None else {}
    for parameter in parameters:
        if parameter.grad is None and parameter not in states:
            continue
        taken = table.setdefault(id(parameter), _Taken(parameter))
        if parameter.grad is not None:
            taken.gradient, parameter.grad = parameter.grad, None
        if optimizer is not None and parameter in states:
            taken.states.append((ref(optimizer), states.pop(parameter)))


def bring_back(parameter: nn.Parameter) -> None:
    """Give back what was taken of ``parameter``, unless something newer is there."""
    for taken in _take(parameter):
        _give(taken, parameter)


def _take(parameter: nn.Parameter) -> list[_Taken]:
    """What was set aside for ``parameter``; the latest first."""
    found = [table.pop(id(parameter), None) for table in reversed(list(_aside.values()))]
    return [taken for taken in found if taken is not None]


def _give(taken: _Taken, parameter: nn.Parameter) -> None:
    gradient = taken.gradient
    if gradient is not None and parameter.grad is None and gradient.shape == parameter.shape:
        parameter.grad = gradient.to(parameter.device, parameter.dtype)
    for reference, state in taken.states:
        optimizer = reference()
        if optimizer is not None and parameter not in optimizer.state:
            optimizer.state[parameter] = state


def forget(parameters: Iterable[nn.Parameter]) -> None:
    """Drop what was set aside for these: they start afresh."""
    for parameter in parameters:
        _take(parameter)
