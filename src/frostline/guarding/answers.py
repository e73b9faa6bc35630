"""What a guard does when something changed: raise, warn, restore, rewind, or only collect."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Protocol
from weakref import WeakSet

from torch.optim import Optimizer

from frostline._collapsing import collapse
from frostline._results import Change
from frostline._state import Snapshot
from frostline.errors import FrostlineWarning, FrozenStateChanged
from frostline.freezing import ignored
from frostline.guarding.answering import drop_optimizer_state, put_back
from frostline.guarding.arguments import OnChange
from frostline.guarding.engine import Engine, Suspect
from frostline.guarding.report import GuardReport

_WINDOWS = 12  # that are told in words
_log = logging.getLogger("frostline")


class Answer(Protocol):
    """One way of answering.

    Attributes:
        windows: for each answered change the steps that may have run on changed bytes.
        repairs: whether it also answers to bytes that a cast there and back has rounded.
    """

    windows: list[str]
    repairs: bool

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""

    def look_ended(self) -> None:
        """What was seen was answered."""

    def after_full_check(self) -> None:
        """Every byte was read, and what differed was answered."""

    def answer(
        self, text: str, drift: Sequence[Change], suspects: Sequence[Suspect], report: GuardReport
    ) -> None:
        """Something drifted."""


class Collect:
    """Only the report knows."""

    repairs = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.windows: list[str] = []

    def before_step(self, optimizer: Optimizer) -> None:
        pass

    def look_ended(self) -> None:
        pass

    def after_full_check(self) -> None:
        pass

    def answer(
        self, text: str, drift: Sequence[Change], suspects: Sequence[Suspect], report: GuardReport
    ) -> None:
        pass


class Raise(Collect):
    """Say it, then raise: whoever catches it can still save a long run's work."""

    def answer(
        self, text: str, drift: Sequence[Change], suspects: Sequence[Suspect], report: GuardReport
    ) -> None:
        _log.error("%s", text)
        raise FrozenStateChanged(text, drift, report)


class Warn(Collect):
    """Say it at the user's line and go on; a tensor is named once."""

    def answer(
        self, text: str, drift: Sequence[Change], suspects: Sequence[Suspect], report: GuardReport
    ) -> None:
        ignored.warn(text, FrostlineWarning)


class Restore(Collect):
    """Put the frozen bytes back and go on."""

    repairs = True

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._optimizers: WeakSet[Optimizer] = WeakSet()
        self._clean_before_step: set[int] = set()
        self._more = 0

    def before_step(self, optimizer: Optimizer) -> None:
        self._optimizers.add(optimizer)
        # What is clean here and not after the step was written by the step, and by no forward read.
        clean = self._engine.witnessed_clean()
        self._clean_before_step = clean

    def look_ended(self) -> None:
        self._clean_before_step = set()

    def answer(
        self, text: str, drift: Sequence[Change], suspects: Sequence[Suspect], report: GuardReport
    ) -> None:
        _refuse_without_suspects(text, drift, suspects, report)
        lost = self.repair(drift, suspects)
        if lost:
            raise FrozenStateChanged(
                f"{text}\n\n{lost[0]} could not be put back: nothing hangs at its name any more",
                drift,
                report,
            )
        ignored.warn(f"{text}\n\n  The frozen bytes were put back.", FrostlineWarning)

    def repair(self, changes: Sequence[Change], suspects: Sequence[Suspect]) -> list[str]:
        """Put the bytes back without a word; the names of those that could not be."""
        lost = [s.watched.name for s in suspects if not put_back(s)]
        # What an optimizer keeps for a frozen tensor came from the same write.
        drop_optimizer_state(list(self._optimizers), [s.watched.tensor for s in suspects])
        self._engine.restored(suspects)
        self._remember(self._windows(changes, suspects))
        return lost

    def _remember(self, windows: list[str]) -> None:
        """The first ones in words, the rest as a number: a norm may drift at every step."""
        room = max(0, _WINDOWS - len(self.windows))
        self.windows += windows[:room]
        self._more += len(windows[room:])
        if self._more:
            self.windows[_WINDOWS:] = [f"and {self._more:,} more, as these"]

    def _windows(self, changes: Sequence[Change], suspects: Sequence[Suspect]) -> list[str]:
        """What forwards may have read, equal steps told once."""
        healed = {
            s.watched.name
            for s in suspects
            if s.tier in ("identity", "pages") and id(s.reference) in self._clean_before_step
        }
        by_window: dict[tuple[int, int, bool], list[str]] = {}
        for change in changes:
            window = (change.since or 0) + 1, change.step or 0, change.name in healed
            by_window.setdefault(window, []).append(change.name)
        return [_window(*window, names) for window, names in by_window.items()]


def _refuse_without_suspects(
    text: str, drift: Sequence[Change], suspects: Sequence[Suspect], report: GuardReport
) -> None:
    """What changed before the guard, or on another rank, is not in our copies."""
    if not suspects:
        _log.error("%s", text)
        raise FrozenStateChanged(f"{text}\n\n  This cannot be put back from here.", drift, report)


def _window(first: int, last: int, healed: bool, names: list[str]) -> str:
    what = ", ".join(pattern for pattern, _ in collapse(names)[:3])
    if healed:
        return f"step {last}: {what} healed before a forward could read it; no step ran on it"
    steps = f"step {first}" if first >= last else f"steps {first} to {last}"
    return f"{steps} may have run on changed bytes of {what}"


class Rewind(Collect):
    """Put models, optimizers and random generators back to the last full check."""

    repairs = True

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._optimizers: list[Optimizer] = []
        self._take()

    def _take(self) -> None:
        self._snapshots = [
            Snapshot.take(model, tuple(self._optimizers)) for model in self._engine.target.models
        ]

    def before_step(self, optimizer: Optimizer) -> None:
        # One that steps for the first time is still as it was at the last full check.
        if not any(known is optimizer for known in self._optimizers):
            self._optimizers.append(optimizer)
            self._snapshots[0].add(optimizer)

    def after_full_check(self) -> None:
        self._take()

    def answer(
        self, text: str, drift: Sequence[Change], suspects: Sequence[Suspect], report: GuardReport
    ) -> None:
        _refuse_without_suspects(text, drift, suspects, report)
        for snapshot in self._snapshots:
            snapshot.restore()
        self._engine.known.clear()
        self._engine.restored(suspects)
        ignored.warn(
            f"{text}\n\n  Models, optimizers and random generators are as at the last full check.",
            FrostlineWarning,
        )


class Quiet(Collect):
    """While an exception passes, or a part lets go: nothing is said, but bytes are put back."""

    def __init__(self, engine: Engine, loud: Answer) -> None:
        super().__init__(engine)
        self._loud = loud
        self.repairs = isinstance(loud, Restore)
        self.windows = loud.windows

    def answer(
        self, text: str, drift: Sequence[Change], suspects: Sequence[Suspect], report: GuardReport
    ) -> None:
        if isinstance(self._loud, Restore):
            self._loud.repair(drift, suspects)


_ANSWERS: dict[str, type[Collect]] = {
    "collect": Collect,
    "raise": Raise,
    "warn": Warn,
    "restore": Restore,
    "rewind": Rewind,
}


def answer_for(on_change: OnChange | Literal["collect"], engine: Engine) -> Answer:
    """The answer of this name."""
    return _ANSWERS[on_change](engine)
