"""What a guard does when something changed: raise, warn, restore, rewind, or only collect."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal, Protocol
from weakref import WeakSet

from torch.optim import Optimizer

from frostline._results import Change
from frostline.errors import FrostlineWarning, FrozenStateChanged
from frostline.freezing import ignored
from frostline.guarding.arguments import OnChange
from frostline.guarding.engine import Engine, Suspect
from frostline.guarding.report import GuardReport

_log = logging.getLogger("frostline")


class Answer(Protocol):
    """One way of answering.

    Attributes:
        windows: for each answered change the steps that may have run on changed bytes.
    """

    windows: list[str]

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step."""

    def after_full_check(self) -> None:
        """Every byte was read, and what differed was answered."""

    def answer(
        self, text: str, drift: Sequence[Change], suspects: Sequence[Suspect], report: GuardReport
    ) -> None:
        """Something drifted."""


class Collect:
    """Only the report knows."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.windows: list[str] = []

    def before_step(self, optimizer: Optimizer) -> None:
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

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._optimizers: WeakSet[Optimizer] = WeakSet()

    def before_step(self, optimizer: Optimizer) -> None:
        self._optimizers.add(optimizer)

    def answer(
        self, text: str, drift: Sequence[Change], suspects: Sequence[Suspect], report: GuardReport
    ) -> None:
        from frostline.guarding.answering import drop_optimizer_state

        lost = [s.watched.name for s in suspects if not self._put_back(s)]
        # What an optimizer keeps for a frozen tensor came from the same write.
        drop_optimizer_state(list(self._optimizers), [s.watched.tensor for s in suspects])
        self._engine.restored(suspects)
        self.windows += list(dict.fromkeys(_window(change) for change in drift))
        if lost:
            raise FrozenStateChanged(
                f"{text}\n\n{lost[0]} could not be put back: nothing hangs at its name any more",
                drift,
                report,
            )
        ignored.warn(f"{text}\n\n  The frozen bytes were put back.", FrostlineWarning)


def _window(change: Change) -> str:
    first, last = (change.since or 0) + 1, change.step or 0
    if change.tier in ("identity", "pages") and change.cause.startswith(("optimizer", "weight")):
        return f"step {last}: healed before the next forward, no step ran on changed bytes"
    steps = f"step {last}" if first >= last else f"steps {first} to {last}"
    return f"{steps} may have run on changed bytes of {change.name}"


class Rewind(Collect):
    """Put models, optimizers and random generators back to the last full check."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._optimizers: list[Optimizer] = []
        self._take()

    def _take(self) -> None:
        from frostline._state import Snapshot

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
        for snapshot in self._snapshots:
            snapshot.restore()
        self._engine.restored(suspects)
        ignored.warn(
            f"{text}\n\n  Models, optimizers and random generators are as at the last full check.",
            FrostlineWarning,
        )


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
