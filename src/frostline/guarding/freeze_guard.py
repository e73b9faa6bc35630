"""FreezeGuard: the life of a guard, from its entry to the report."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline._names import named_tensors
from frostline._results import Change
from frostline.errors import FreezeError, FrozenStateChanged
from frostline.freezing import live_parts
from frostline.guarding import preflight, rank_check, rounds, standing, target, telling
from frostline.guarding.answers import Quiet, answer_for
from frostline.guarding.arguments import OnChange, Pinpoint, Proof
from frostline.guarding.engine import Engine, Suspect
from frostline.guarding.explaining import Explaining
from frostline.guarding.idle import IdleWatch
from frostline.guarding.listening import Ears
from frostline.guarding.pace import Pace
from frostline.guarding.report import GuardReport
from frostline.guarding.witness import Witness
from frostline.selection import Selector

LIMIT = 5.0
"""Seconds that the last check may take when the guard is left by an exception."""


class FreezeGuard:
    """What :func:`frostline.guard` returns: a context manager that watches.

    Guards may be nested, and may overlap.
    """

    def __init__(
        self,
        target_: target.Guardable,
        select: Selector,
        overhead: float,
        on_change: OnChange | Literal["collect"],
        pinpoint: Pinpoint,
        proof: Proof,
    ) -> None:
        self._asked = (target_, select)
        self._overhead, self._proof = overhead, proof
        self._on_change = on_change
        self._pinpoint = pinpoint
        self._lock = threading.RLock()
        self._state: Literal["new", "watching", "over"] = "new"
        found = self._resolve()
        self._report = GuardReport(found.text, len(found.tensors), 0)

    def _resolve(self) -> target.Target:
        target_, select = self._asked
        if self._on_change == "collect" and isinstance(target_, nn.Module):
            return target.by_flags(target_, select)
        return target.resolve(target_, select)

    # --- the life of a guard ----------------------------------------------------------------

    def __enter__(self) -> FreezeGuard:
        if self._state != "new":
            raise FreezeError(
                "this guard was entered before; make a new one: with fl.guard(...) as guard"
            )
        started = time.perf_counter()
        with ExitStack() as undo:
            self._begin(undo)
            self._undo = undo.pop_all()
        self._state = "watching"
        self._report.seconds["entry"] = time.perf_counter() - started
        return self

    def _begin(self, undo: ExitStack) -> None:
        self._pid = os.getpid()
        self._rounds = rounds.Rounds()
        self._pace = Pace()
        self._introduced: WeakSet[Optimizer] = WeakSet()
        self._clean_at = self._full_at = 0
        self._shrunk = False
        self._late: list[Change] = []
        self._notes: list[str] = []
        self._busy = False
        self._target = self._resolve()
        before = self._look_at_seals()
        keeps = self._on_change == "restore"
        self._engine = Engine(
            self._target, overhead=self._overhead, proof=self._proof, keep_copies=keeps
        )
        undo.callback(self._engine.close)
        self._report.frozen = len(self._target.tensors)
        self._report.nbytes = self._engine.nbytes
        frozen = {id(w.tensor) for w in self._target.tensors}
        self._idle = IdleWatch(self._target.models, frozen, self._engine.key)
        self._explaining = Explaining(self._engine)
        self._witness = Witness(self._engine, self._pinpoint)
        self._answer = answer_for(self._on_change, self._engine)
        undo.callback(self._witness.close)
        undo.enter_context(Ears(self, self._target, self._explaining).open())
        self._witness.open()
        if before:
            self._tell(before)

    def _look_at_seals(self) -> list[Change]:
        """Seal what is not sealed; what changed since it was sealed changed before the guard."""
        found: list[Change] = []
        for part in self._target.parts:
            if not part.sealed:
                part.seal()
                continue
            watched = {id(w.tensor) for w in self._target.tensors}
            covered = {name for name, tensor in part.tensors.items() if id(tensor) in watched}
            changes = (c for c in part.changes() if c.severity == "drift" and c.name in covered)
            found += [replace(c, name=self._name_of(part.tensors[c.name])) for c in changes]
        return found

    def _name_of(self, tensor: Tensor) -> str:
        """Its name in this guard, which may watch several models."""
        return next(w.name for w in self._target.tensors if w.tensor is tensor)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._state != "watching" or os.getpid() != self._pid:
            return
        try:
            with self._lock, self._undo:
                self._state = "over"
                if error is None:
                    self._leave()
                elif not (isinstance(error, FrozenStateChanged) and error.report is self._report):
                    self._leave_by(error)
                else:
                    self._close_report()
        finally:
            # Whoever keeps the guard for its report does not keep the model by it.
            del self._engine, self._target, self._idle, self._explaining, self._witness
            del self._answer, self._asked, self._undo

    def _leave(self) -> None:
        try:
            self.read_all()
            self._compare_ranks()
        finally:
            self._close_report()
        if self._report.nothing_ran and self._on_change != "collect":
            telling.warn(telling.verdict(self._report))

    def _leave_by(self, error: BaseException) -> None:
        """The exception of the block passes on; what was found goes along as a note."""
        limit = 0.0 if isinstance(error, KeyboardInterrupt) else LIMIT
        try:
            drift = self._late + self._found_quietly(limit)
            self._close_report()
        except Exception as trouble:
            error.add_note(f"frostline: the last check failed: {trouble!r}")
            return
        if drift:
            error.add_note(telling.alarm(drift, self._report, self._witness.is_on))

    def finish(self) -> GuardReport:
        """Leave as if the block had ended; for those who cannot write one."""
        self.__exit__(None, None, None)
        return self._report

    # --- what others call -------------------------------------------------------------------

    @property
    def report(self) -> GuardReport:
        """What was seen so far.

        Raises:
            FreezeError: if the guard was not entered.
        """
        if self._state == "new":
            self._refuse_unless_watching("report")
        if self._state == "watching":
            with self._lock:
                self._close_report(final=False)
        return self._report

    def step(self) -> None:
        """Count a step and look: for loops whose optimizer is not one of torch's.

        Raises:
            FrozenStateChanged: with ``on_change="raise"``, if something changed.
        """
        self._refuse_unless_watching("step")
        with self._lock:
            self._rounds.by_hand()
            self._pace.step_ended()
            if self._report.nothing_ran:
                self._preflight(None)
            self._look()

    def check(self) -> None:
        """Read every byte now; under torch.distributed compare ranks, so call it on all of them.

        Raises:
            FrozenStateChanged: with ``on_change="raise"``, if something changed.
        """
        self._refuse_unless_watching("check")
        with self._lock:
            self.read_all()
            self._compare_ranks()

    def _refuse_unless_watching(self, verb: str) -> None:
        if self._state != "watching":
            when = "was left already" if self._state == "over" else "was not entered yet"
            raise FreezeError(
                f"guard.{verb} has nothing to look at: the guard {when}. Write: "
                "with fl.guard(...) as guard"
            )

    # --- what the process tells, through the ears -------------------------------------------

    def step_begins(self, optimizer: Optimizer) -> None:
        """See :class:`frostline.guarding.listening.Concerned`."""
        with self._lock, self._pace.not_counted():
            self.follow_flags()
            if self._report.nothing_ran:
                self._preflight(None)
            if optimizer not in self._introduced:
                self._introduced.add(optimizer)
                self._preflight(optimizer)
            self._idle.before_step(optimizer)
            self._explaining.before_step(optimizer)
            self._answer.before_step(optimizer)

    def step_ends(self, optimizer: Optimizer, skipped: bool) -> None:
        """See :class:`frostline.guarding.listening.Concerned`."""
        with self._lock:
            if skipped:
                self._idle.before_step(optimizer)
            if self._rounds.begins(optimizer):
                self._pace.step_ended()
            if self._rounds.is_time_to_look:
                self._look()

    def state_is_taken(self) -> None:
        """See :class:`frostline.guarding.listening.Concerned`."""
        if not self._busy and self._state == "watching":
            self.read_all()

    def part_shrinks(self, part: live_parts.LivePart) -> None:
        """What is let go is checked a last time."""
        if self._state == "watching" and any(p is part for p in self._target.parts):
            with self._lock:
                if not (self._busy or self._shrunk):
                    # Letting go goes on whatever is found; the alarm comes at the next look.
                    self._late += self._found_quietly()
                self._shrunk = True

    # --- looking ----------------------------------------------------------------------------

    def _look(self) -> None:
        with self._pace.not_counted(), self._alone():
            self._membership()
            self.follow_flags()
            self._report.nothing_ran = False
            self._report.steps = self._rounds.steps
            self._handle(self._engine.look(self._pace.step_seconds))
            self._tell_late()
            self._clean_at = self._rounds.steps
            self._give_lines()
            self._answer.look_ended()
            self._witness.step_ended()

    def _give_lines(self) -> None:
        """What was told without a line, and was written again while lines were looked for."""
        if self._pinpoint != "auto" or not self._witness.is_on:
            return
        have = {change.name for change in self._report.changes if change.culprit is not None}
        for number, change in enumerate(self._report.changes):
            culprit = self._witness.culprit(change.name)
            if culprit is not None and change.name not in have:
                self._report.changes[number] = replace(change, culprit=culprit.where)

    def read_all(self, seconds: float | None = None) -> None:
        """Read every byte, on this rank alone, for at most ``seconds`` if that is given."""
        with self._lock, self._pace.not_counted(), self._alone():
            self._membership()
            suspects = self._engine.full_check(seconds)
            self._handle(suspects, self._structure())
            self._tell_late()
            self._clean_at = self._full_at = self._rounds.steps
            self._explaining.all_was_read()
            self._answer.after_full_check()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Our own reading of state dicts is no save point."""
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _structure(self) -> list[Change]:
        """Modes and additions, as the parts tell of them; flags and bytes are the engine's."""
        told = {(c.name, c.kind) for c in self._report.changes}
        found = [c for p in self._target.parts if not p.undone for c in p.structure_changes()]
        return [
            replace(c, step=self._rounds.steps, since=self._full_at)
            for c in found
            if c.kind in ("mode", "added") and (c.name, c.kind) not in told
        ]

    def _membership(self) -> None:
        """Parts that shrank let tensors go; flags may have frozen more."""
        if self._shrunk:
            self._shrunk = False
            for watched in list(self._target.tensors):
                part = watched.part
                if part is not None and (part.undone or not _covers(part, watched)):
                    self._engine.release(watched, "was thawed")
            self._target.parts = [p for p in self._target.parts if not p.undone]
            self._engine.rebind()

    def follow_flags(self) -> None:
        """Let go of what flags do not freeze any more, checked a last time; take in what they do.

        To be called before a forward: what that writes to an unfrozen norm is no alarm any more.
        """
        if not self._target.by_flag:
            return
        with self._lock, self._pace.not_counted():
            if self._engine.identity.thawed():
                self._let_thawed_go()
            if self._idle.drop_frozen():
                self._admit_newly_frozen()

    def _let_thawed_go(self) -> None:
        """What flags do not freeze any more is checked a last time, and watched no longer."""
        frozen = target.frozen_now(self._target.models)
        live = {id(e.tensor) for model in self._target.models for e in named_tensors(model)}
        free = [
            w
            for w in self._target.tensors
            if w.by_flag and id(w.tensor) in live and id(w.tensor) not in frozen
        ]
        buffers = {w.name for w in free if w.places[0].kind != "parameter"}
        known = len(self._report.changes)
        answer, self._answer = self._answer, answer_for("collect", self._engine)
        try:
            self._handle(self._engine.let_go(free))
        finally:
            self._answer = answer
        if self._on_change != "collect":
            # Nobody told when the flag was switched: a norm may have run since, and was meant to.
            late = [
                replace(c, severity="report") if c.name in buffers else c
                for c in self._report.changes[known:]
            ]
            self._report.changes[known:] = late
            self._late += [c for c in late if c.severity == "drift"]

    def _admit_newly_frozen(self) -> None:
        known = {id(w.tensor) for w in self._target.tensors}
        model, select = self._asked
        now = target.by_flags(model, select) if isinstance(model, nn.Module) else None
        new = [w for w in (now.tensors if now else ()) if id(w.tensor) not in known]
        if new:
            self._engine.admit(new)
            self._report.frozen = len(self._target.tensors)
            self._report.nbytes = self._engine.nbytes

    def _found_quietly(self, seconds: float | None = None) -> list[Change]:
        """The drift that a full check finds, without the answer to it."""
        with self._quietly() as found:
            self._handle(self._engine.look(None))  # the cheap ones first, whatever the time
            self.read_all(seconds)
        return found

    @contextmanager
    def _quietly(self) -> Iterator[list[Change]]:
        """Collect drift, and answer nothing."""
        answer, self._answer = self._answer, Quiet(self._engine, self._answer)
        known, found = len(self._report.changes), list[Change]()
        try:
            yield found
        finally:
            self._answer = answer
            found += [c for c in self._report.changes[known:] if c.severity == "drift"]

    def _preflight(self, optimizer: Optimizer | None) -> None:
        found = (
            preflight.of_models(self._target)
            if optimizer is None
            else preflight.of_optimizer(self._target, optimizer)
        )
        known = set(self._report.preflight)
        self._report.preflight += [finding for finding in found if finding not in known]

    # --- answering --------------------------------------------------------------------------

    def _handle(self, suspects: list[Suspect], more: list[Change] | None = None) -> None:
        if suspects:
            self._witness.catch_up()
        changes = self._explaining.changes(
            suspects, self._since, self._rounds.steps, self._witness
        ) + list(more or ())
        if not changes:
            self._explaining.look_ended()
            return
        self._record(changes)
        self._explaining.look_ended()
        drifted = {c.name for c in changes if c.severity == "drift" or self._is_to_be_repaired(c)}
        answered = [s for s in suspects if s.watched.name in drifted]
        self._engine.accept(s for s in suspects if s.watched.name not in drifted)
        self._engine.settle(answered)
        if drifted:
            self._tell([c for c in changes if c.name in drifted], answered)

    def _record(self, changes: list[Change]) -> None:
        """Each tensor is reported once for each kind, with its first step, and with a line."""
        told = {(c.name, c.kind): i for i, c in enumerate(self._report.changes)}
        for change in changes:
            i = told.get((change.name, change.kind))
            if i is None:
                self._report.changes.append(change)
            elif self._report.changes[i].culprit is None:
                known = self._report.changes[i]
                self._report.changes[i] = replace(known, culprit=change.culprit)

    def _since(self, suspect: Suspect) -> int:
        """The last step after which the tier that saw it would have seen it."""
        if suspect.tier == "content":
            return max(0, self._clean_at - (self._engine.patrol.announced or self._clean_at))
        if suspect.tier == "full check" and not self._engine.is_paged(suspect):
            return self._full_at
        return self._clean_at

    def _is_to_be_repaired(self, change: Change) -> bool:
        """A cast there and back has rounded the bytes; one that stays is the user's wish."""
        return self._answer.repairs and change.kind == "cast" and change.elements is not None

    def _tell(self, changes: list[Change], suspects: list[Suspect] | None = None) -> None:
        self._record(changes)
        self._close_report(final=False)
        text = telling.alarm(changes, self._report, self._witness.is_on)
        self._answer.answer(text, changes, suspects or [], self._report)
        self._witness.after_alarm()

    def _tell_late(self) -> None:
        late, self._late = self._late, []
        if not late:
            return
        if self._answer.repairs:  # what was let go stays as its owner has it now
            telling.warn(telling.alarm(late, self._report, self._witness.is_on))
        else:
            self._tell(late)

    def _compare_ranks(self) -> None:
        changes, notes = rank_check.compare(self._engine, self._report.target)
        self._notes += notes
        if changes:
            self._tell(changes)

    def _close_report(self, final: bool = True) -> None:
        report, engine = self._report, self._engine
        report.steps = self._rounds.steps
        standing.fill(report, engine, final=final)
        report.notes = list(dict.fromkeys([*self._notes, *engine.all_notes, *self._witness.notes]))
        report.windows = self._answer.windows
        if final:
            report.idle = self._idle.idle()


def _covers(part: Any, watched: target.Watched) -> bool:
    return any(tensor is watched.tensor for tensor in part.tensors.values())
