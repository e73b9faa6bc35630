"""Steps, as torch's optimizers tell of them: one hook before and after for the whole process.

A guard's step is one round: every optimizer that it follows steps at most once in it. So the 20
optimizers of an optimizer-in-backward make one step, and two optimizers that take turns make one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils.hooks import RemovableHandle

MANY = 8
"""Optimizers in one round from which on only the last of them is waited for."""


class Listener(Protocol):
    """What a guard hears."""

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""

    def after_step(self, optimizer: Optimizer) -> None:
        """It has finished."""


Hook = Callable[[Optimizer, Any, Any], None]

_listeners: list[Listener] = []
_handles: list[RemovableHandle] = []


def listen(listener: Listener) -> None:
    """Tell ``listener`` of every step from now on."""
    _listeners.append(listener)
    if not _handles:
        _handles.append(register_optimizer_step_pre_hook(_eager(_before)))
        _handles.append(register_optimizer_step_post_hook(_eager(_after)))


def _eager(hook: Hook) -> Hook:
    """``hook``, not to be traced by ``torch.compile`` along with the step.

    Before the compiler is loaded nothing can be compiled, and loading it takes a second.
    """
    if "torch._dynamo" not in sys.modules:
        return hook
    return torch.compiler.disable(hook)  # type: ignore[no-any-return]


def unlisten(listener: Listener) -> None:
    """Tell it no more; the hooks go with the last listener."""
    _listeners[:] = [other for other in _listeners if other is not listener]
    if not _listeners:
        while _handles:
            _handles.pop().remove()


def _before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _is_out_of_reach():
        for listener in list(_listeners):
            listener.before_step(optimizer)


def _after(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if not _is_out_of_reach():
        for listener in list(_listeners):
            listener.after_step(optimizer)


def _is_out_of_reach() -> bool:
    """Inside of compiled code, and while a CUDA graph is captured, nothing may be looked at."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _forget_in_child() -> None:
    # The guards of the parent go on there; here is only a copy of them.
    _listeners.clear()
    while _handles:
        _handles.pop().remove()


os.register_at_fork(after_in_child=_forget_in_child)


def _replaces(optimizer: Optimizer, other: Optimizer) -> bool:
    """Whether it has parameters of the other: a new stage, or a new optimizer for each epoch.

    One that steps another inside of its own step (SAM) has the very groups of that one.
    """
    if optimizer.param_groups is other.param_groups:
        return False
    mine = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return any(id(p) in mine for group in other.param_groups for p in group["params"])


class Rounds:
    """Counts the rounds of the optimizers that one guard follows."""

    def __init__(self) -> None:
        self.steps = 0
        self._stepped: WeakSet[Optimizer] = WeakSet()
        self._last_round = self._count = 0

    def begins(self, optimizer: Optimizer) -> bool:
        """Count a step of ``optimizer``; whether a new round begins with it."""
        again = optimizer in self._stepped or any(map(partial(_replaces, optimizer), self._stepped))
        gone = len(self._stepped) < self._count
        new = self.steps == 0 or gone or again
        if new:
            self._last_round = self._count
            self._stepped, self._count = WeakSet(), 0
            self.steps += 1
        self._stepped.add(optimizer)
        self._count = len(self._stepped)
        return new

    def by_hand(self) -> None:
        """Count a step that no optimizer of torch told of."""
        self._last_round, self._stepped, self._count = self._count, WeakSet(), 0
        self.steps += 1

    @property
    def is_time_to_look(self) -> bool:
        """After each optimizer; where there are many, after the last one of the round."""
        return self._last_round <= MANY or len(self._stepped) >= self._last_round
