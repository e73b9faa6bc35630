"""The witness of single writes: pinpointing, fitted to the engine's memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from frostline.guarding.engine import Engine
from frostline.guarding.reference import HostBlocks, Reference

if TYPE_CHECKING:
    from frostline.guarding.pinpointing import Culprit, Pinpoint

STEPS_AFTER_ALARM = 2

_READ_AT_EACH_LINE = 64 << 20  # without pages, what is read at each line of the user's code


def _nobody(name: str) -> None:
    pass


class Memory:
    """What is watched, as pinpointing asks for it: a change is told once, then taken as known."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._seen = {r.name: r.digest() for r in engine.references}
        self._first = dict(self._seen)
        self.acquit: Callable[[str], None] = _nobody
        self._elsewhere: set[str] = set()

    def ranges(self) -> Sequence[tuple[int, int, str]]:
        """Byte ranges of what is watched on the CPU, in order."""
        return sorted(
            (*piece.span, reference.name)
            for reference in self._engine.references
            for piece in reference.pieces
            if piece.span is not None
        )

    def changed(self, names: Iterable[str] | None) -> list[str]:
        """What differs from when it was last asked for."""
        found = self._exchanged()
        if self._elsewhere and not self._is_readable():
            return found
        for reference in self._candidates(names):
            now = reference.digest()
            if self._seen.get(reference.name) != now:
                self._seen[reference.name] = now
                found.append(reference.name)
                if now == self._first.get(reference.name):
                    # Written and put back, as for an evaluation: whoever did so is no culprit.
                    found.pop()
                    self.acquit(reference.name)
        return found

    def _exchanged(self) -> list[str]:
        """What became another object, or got other memory."""
        names = [watched.name for watched in self._engine.identity.elsewhere()]
        self._elsewhere.intersection_update(names)
        new = [name for name in names if name not in self._elsewhere]
        self._elsewhere.update(new)
        return new

    def _is_readable(self) -> bool:
        pieces = (piece for reference in self._engine.references for piece in reference.pieces)
        return all(piece.is_there for piece in pieces if isinstance(piece, HostBlocks))

    def _candidates(self, names: Iterable[str] | None) -> list[Reference]:
        engine = self._engine
        if names is not None:
            wanted = set(names)
            return [r for r in engine.references if r.name in wanted]
        paged = engine.pages.touched() if engine.pages is not None else []
        left = _READ_AT_EACH_LINE
        vouched = set(map(id, engine.pages.references)) if engine.pages is not None else set()
        for reference in engine.references:
            if id(reference) not in vouched and reference.nbytes <= left:
                left -= reference.nbytes
                paged.append(reference)
        return paged


class Witness:
    """Pinpointing while it is wanted: always, never, or for some steps after an alarm."""

    def __init__(self, engine: Engine, wanted: bool | Literal["auto"]) -> None:
        self._engine, self._wanted = engine, wanted
        self._pinpoint: Pinpoint | None = None
        self._left = 0

    @property
    def is_on(self) -> bool:
        """Whether single writes are watched now."""
        return self._pinpoint is not None

    @property
    def notes(self) -> list[str]:
        """What pinpointing could not do."""
        return self._pinpoint.notes if self._pinpoint is not None else []

    def open(self) -> None:
        """Begin, if lines are wanted from the start."""
        if self._wanted is True:
            self._start()

    def close(self) -> None:
        """Watch no more."""
        if self._pinpoint is not None:
            self._pinpoint.stop()
            self._pinpoint = None

    def culprit(self, name: str) -> Culprit | None:
        """Who wrote to ``name`` since the last step."""
        return self._pinpoint.culprit_of(name) if self._pinpoint is not None else None

    def catch_up(self) -> None:
        """What the line that runs has written until now is its doing."""
        if self._pinpoint is not None:
            self._pinpoint.catch_up()

    def after_alarm(self) -> None:
        """With ``"auto"``, watch the next steps."""
        if self._wanted == "auto":
            self._left = STEPS_AFTER_ALARM + 1
            if self._pinpoint is None:
                self._start()

    def step_ended(self) -> None:
        """What was seen belongs to the step that has ended."""
        if self._pinpoint is not None:
            self._pinpoint.forget()
        if self._left:
            self._left -= 1
            if not self._left:
                self.close()

    def _start(self) -> None:
        # Most guards never pinpoint, and need not load it.
        from frostline.guarding.pinpointing import Pinpoint

        memory = Memory(self._engine)
        self._pinpoint = Pinpoint(memory)
        memory.acquit = self._pinpoint.acquit
        self._pinpoint.start()
