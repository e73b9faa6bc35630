"""Find the models that a script trains, and guard each before its first training forward.

Nothing is handed in. The first call of an unknown module leads to the model that it hangs in, and
the first step of an unknown optimizer leads to the models of its parameters. What is frozen there
is what flags and parts say, at any time; what ``frozen`` selects comes on top.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
import weakref
from collections.abc import Sequence
from types import TracebackType
from typing import Any
from weakref import WeakSet

import torch
from torch import nn
from torch.optim import Optimizer

from frostline.errors import FrostlineError, SelectionError
from frostline.guarding import rounds
from frostline.guarding.freeze_guard import FreezeGuard
from frostline.guarding.guard import collecting
from frostline.guarding.report import GuardReport
from frostline.guarding.scripts import global_hook, roots
from frostline.guarding.scripts.merging import Followed
from frostline.guarding.scripts.running import Enough
from frostline.guarding.scripts.step_limit import StepLimit
from frostline.guarding.scripts.tracked import Root, holds, place_in
from frostline.selection import select

AT_ONCE = 8
"""Models that are followed at the same time: a guard keeps its model in memory."""

MOST = 64
"""Models that are followed in all; a script that copies its model for every task makes no end."""

TRIES = 8
"""Calls after which a model that cannot be read (still lazy, on meta) is given up."""


_log = logging.getLogger("frostline")


class StepsDone(Enough):
    """As many steps as were asked for."""


class Discovery:
    """Watches a process from entry to exit.

    Args:
        frozen: selectors of what must not change, beside what is frozen by flags and parts.
        pinpoint: whether to name the line that wrote.
        steps: how many steps of each optimizer to allow; None for as many as there are.

    Attributes:
        unwatched: models that could not be watched, and why.
        bugs: tracebacks of our own errors, which must not become the script's.
    """

    def __init__(
        self, frozen: Sequence[str] = (), *, pinpoint: bool = False, steps: int | None = None
    ) -> None:
        self._frozen = list(frozen)
        self._matched: set[str] = set()
        self._nearest: dict[str, str] = {}
        self._pinpoint = pinpoint
        self._limit = StepLimit(steps)
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._seen: dict[int, weakref.ref[nn.Module]] = {}
        self._tries: dict[int, int] = {}
        self._roots: list[Root] = []
        self._stepped = False
        self._introduced: WeakSet[Optimizer] = WeakSet()
        self.unwatched: dict[str, str] = {}
        self.bugs: list[str] = []

    def __enter__(self) -> Discovery:
        rounds.listen(self)
        self._said: set[str] = set()
        self._hook = global_hook.before_forward(self._called)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()
        rounds.unlisten(self)
        if os.getpid() == self._pid:
            self.finish()  # also where nobody asked for what was found

    def finish(self) -> list[Followed]:
        """Check everything a last time; what is known of each model, in the order of finding."""
        with self._lock:
            for root in self._roots:
                self._let_go(root)
            return [root.found for root in self._roots]

    @property
    def unmatched(self) -> list[str]:
        """For each selector that matched in no model: why, with the nearest names."""
        return [
            self._nearest.get(text, f"--frozen {text} matches nothing: no model was seen")
            for text in self._frozen
            if text not in self._matched
        ]

    # --- what the process tells -----------------------------------------------------------

    def _called(self, module: nn.Module, args: Any) -> None:
        # In compiled code this line is all that is traced.
        if torch.compiler.is_compiling() or _is_traced() or os.getpid() != self._pid:
            return
        if not self._is_known(module):
            with self._lock:
                self._meet([module])
        elif self._stepped or any(root.model is module for root in self._roots):
            with self._lock:
                self._follow_flags()

    def before_step(self, optimizer: Optimizer) -> None:
        """See :class:`frostline.guarding.rounds.Listener`."""
        if self._limit.would_exceed(optimizer):
            raise StepsDone
        if optimizer in self._introduced:
            return
        with self._lock:
            self._introduced.add(optimizer)
            try:
                self._introduce(optimizer)
            except Exception:
                self.bugs.append(traceback.format_exc())
            self._say_unmatched()

    def _say_unmatched(self) -> None:
        """At once and not after days of training; a later stage may still have such a model."""
        for text in self.unmatched:
            if text not in self._said:
                self._said.add(text)
                _log.warning("%s", text)

    def after_step(self, optimizer: Optimizer) -> None:
        """See :class:`frostline.guarding.rounds.Listener`."""
        self._stepped = True
        if self._limit.is_reached_by(optimizer):
            raise StepsDone

    # --- models ---------------------------------------------------------------------------

    def _is_known(self, module: nn.Module) -> bool:
        known = self._seen.get(id(module))
        return known is not None and known() is module

    def _mark(self, module: nn.Module) -> None:
        self._seen[id(module)] = weakref.ref(module)

    def _introduce(self, optimizer: Optimizer) -> None:
        """Follow the models whose parameters it has."""
        given = [p for group in optimizer.param_groups for p in group["params"]]
        ids = {id(p) for p in given}
        mine = [r for r in self._roots if r.model is not None and holds(r.model, ids)]
        held = {id(p) for r in mine if r.model is not None for p in r.model.parameters()}
        if not ids <= held:
            self._meet(roots.owners(p for p in given if id(p) not in held))
            mine = [r for r in self._roots if r.model is not None and holds(r.model, ids)]
        for root in mine:
            self._resume(root)
            root.optimizers.add(optimizer)
            root.was_optimized = True

    def _meet(self, modules: Sequence[nn.Module]) -> None:
        """Follow the models that these modules hang in; errors of ours stay here."""
        worth = [m for m in modules if roots.has_tensors(m) and not _is_replica(m)]
        for module in modules:
            if not roots.has_tensors(module):
                self._mark(module)
        if worth and len(self._roots) >= MOST:
            self.unwatched["Later models"] = f"more than {MOST} models were made, one after another"
            return
        try:
            for model in roots.outermost(worth) if worth else []:
                self._follow(model)
        except Exception:
            self.bugs.append(traceback.format_exc())
            for module in modules:
                self._mark(module)

    def _follow(self, model: nn.Module) -> None:
        if any(root.model is model for root in self._roots):
            self._mark_all(model)  # known, with new modules in it
            return
        inside = [
            (r, prefix) for r in self._roots if (prefix := place_in(r.model, model)) is not None
        ]
        self._make_room()
        try:
            guard = self._guarded(model)
        except FrostlineError as error:
            self._not_yet(model, str(error))
            return
        root = Root(weakref.ref(model), Followed(roots.title(model)))
        root.guard = guard
        for inner, prefix in inside:
            self._absorb(inner, root, prefix)
        self._roots.append(root)
        self.unwatched.pop(root.found.model, None)
        self._mark_all(model)
        self._listen_last()

    def _follow_flags(self) -> None:
        """In the first forward after a step, and whenever a whole model is called."""
        self._stepped = False
        try:
            for root in self._roots:
                if root.guard is not None:
                    root.guard.follow_flags()
        except Exception:
            self.bugs.append(traceback.format_exc())

    def _listen_last(self) -> None:
        # Whoever ends the script from within a step has to hear of the step last.
        rounds.unlisten(self)
        rounds.listen(self)

    def _guarded(self, model: nn.Module) -> FreezeGuard:
        chosen = [text for text in self._frozen if self._matches(model, text)]
        with torch.inference_mode(False), torch.no_grad():
            return collecting(model, chosen or None, pinpoint=self._pinpoint).__enter__()

    def _matches(self, model: nn.Module, text: str) -> bool:
        try:
            select(model, text)
        except SelectionError as error:
            self._nearest[text] = f"--frozen {text} in {roots.title(model)}: {error}"
            return False
        self._matched.add(text)
        return True

    def _mark_all(self, model: nn.Module) -> None:
        for module in model.modules():
            self._mark(module)

    def _not_yet(self, model: nn.Module, why: str) -> None:
        """Lazy and meta tensors have no content before the first forward: another call, then."""
        self.unwatched[roots.title(model)] = why
        self._tries[id(model)] = self._tries.get(id(model), 0) + 1
        if self._tries[id(model)] >= TRIES:
            self._mark_all(model)

    def _absorb(self, inner: Root, outer: Root, prefix: str) -> None:
        """What was followed on its own hangs in something larger now: names from out there."""
        self._let_go(inner)
        outer.found.earlier += inner.found.below(prefix)
        outer.optimizers |= inner.optimizers
        outer.was_optimized |= inner.was_optimized
        self._roots.remove(inner)

    def _make_room(self) -> None:
        """A guard keeps its model in memory, and scripts build one for each fold."""
        live = [root for root in self._roots if root.guard is not None]
        for root in live:
            if root.guard is not None and root.was_optimized:
                # With that the evidence goes which keeps optimizers of the past in memory.
                root.guard.read_all()
        over = [root for root in live if root.is_over()]
        if not over and len(live) >= AT_ONCE:
            over = sorted(live, key=lambda root: bool(root.optimizers))[:1]
        for root in over:
            self._let_go(root)

    def _resume(self, root: Root) -> None:
        """A model that was let go is trained again: a second phase with a new optimizer."""
        model = root.model
        if root.guard is None and model is not None:
            root.found.earlier = list(root.found.below(""))
            root.guard = self._guarded(model)
            self._listen_last()

    def _let_go(self, root: Root) -> None:
        if root.guard is None:
            return
        guard, root.guard = root.guard, None
        try:
            report: GuardReport = guard.finish()
        except Exception:
            self.bugs.append(traceback.format_exc())
            report = guard.report
        root.found.last = report


def _is_traced() -> bool:
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def _is_replica(module: nn.Module) -> bool:
    """DataParallel makes new copies for every forward."""
    return bool(getattr(module, "_is_replica", False))
