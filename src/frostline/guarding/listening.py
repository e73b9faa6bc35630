"""What the process tells of itself, passed on to the guard that it concerns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline.freezing import live_parts
from frostline.guarding import rounds
from frostline.guarding.causes import observing
from frostline.guarding.explaining import Explaining
from frostline.guarding.target import Target


class Concerned(Protocol):
    """A guard, as far as it has to be told."""

    def step_begins(self, optimizer: Optimizer) -> None:
        """An optimizer that the guard follows is about to step."""

    def step_ends(self, optimizer: Optimizer, skipped: bool) -> None:
        """It has stepped, or a GradScaler left its step out."""

    def state_is_taken(self) -> None:
        """Somebody takes the state dict of what is watched."""

    def part_shrinks(self, part: live_parts.LivePart) -> None:
        """``fl.unfreeze`` or ``undo`` is about to let something go."""


class Ears:
    """Listens on behalf of one guard, in this process and not in its forked children."""

    def __init__(self, guard: Concerned, target: Target, explaining: Explaining) -> None:
        self._guard, self._target, self._explaining = guard, target, explaining
        self._pid = os.getpid()
        self._relevant: WeakKeyDictionary[Optimizer, tuple[int, bool]] = WeakKeyDictionary()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hear everything, until the block is left."""
        undo: Callable[[], None] = live_parts.on_shrink(self._guard.part_shrinks)
        rounds.listen(self)
        observing.listen(self)
        try:
            yield
        finally:
            observing.unlisten(self)
            rounds.unlisten(self)
            undo()

    # --- steps ----------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer) -> None:
        """See :class:`frostline.guarding.rounds.Listener`."""
        if self._follows(optimizer):
            self._guard.step_begins(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """See :class:`frostline.guarding.rounds.Listener`."""
        if self._follows(optimizer):
            self._guard.step_ends(optimizer, False)

    def skipped(self, optimizer: Optimizer) -> None:
        """A GradScaler left the step out; forwards have run all the same."""
        if self._follows(optimizer):
            self._guard.step_ends(optimizer, True)

    def _follows(self, optimizer: Optimizer) -> bool:
        """Those that hold a parameter of the models; all, if the models have nothing to train."""
        if os.getpid() != self._pid:
            return False
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._relevant.get(optimizer)
        if known is None or known[0] != size:
            known = self._relevant[optimizer] = size, self._is_of_interest(optimizer)
        return known[1]

    def _is_of_interest(self, optimizer: Optimizer) -> bool:
        mine = [p for model in self._target.models for p in model.parameters()]
        given = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return any(id(p) in given for p in mine) or not any(p.requires_grad for p in mine)

    # --- calls ----------------------------------------------------------------------------

    def saving(self, module: nn.Module) -> None:
        """Somebody takes a state dict: what is saved is checked first."""
        inside = {id(m) for m in module.modules()}
        # A wrapper (DDP, Lightning) saves the model, a submodule a part of it.
        if any(id(place.owner) in inside for w in self._target.tensors for place in w.places):
            self._guard.state_is_taken()

    def loaded(self, module: nn.Module, keys: Mapping[str, Tensor | None], where: str) -> None:
        """Somebody called ``load_state_dict``."""
        self._explaining.loaded(module, keys, where)

    def converted(self, module: nn.Module, where: str) -> None:
        """Somebody moved or cast a module."""
        self._explaining.converted(module, where)

    def applied(self, module: nn.Module, function: str, where: str) -> None:
        """Somebody called ``module.apply(function)``."""
        self._explaining.applied(module, function, where)
