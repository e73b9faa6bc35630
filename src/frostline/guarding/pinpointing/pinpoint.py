"""Pinpoint: who wrote to watched memory, by two witnesses, as file, line and operation."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import NamedTuple, Protocol

import torch

from frostline.guarding.pinpointing import dispatching, frames
from frostline.guarding.pinpointing.line_tracing import LineTracing
from frostline.guarding.pinpointing.stance import EagerStance

DEPTH = 6
"""How many of the user's frames a culprit carries."""
UNSEEN = "unseen"
"""The operation of a write at or before this line that nobody saw, where lines are not traced."""
NOWHERE = "no Python code"
"""The place of a write with no frame of Python above it."""

SHARED = (
    "several threads ran code of yours at once: a write that no dispatcher saw may be another "
    "thread's than the one whose line is named. Run with one thread to be sure."
)


class Memory(Protocol):
    """Watched memory, as pinpointing sees it. Asked with all torch modes off, by one thread."""

    def ranges(self) -> Sequence[tuple[int, int, str]]:
        """Start, end and full name of every byte range, on any device, sorted by start."""

    def changed(self, names: Iterable[str] | None) -> list[str]:
        """The names whose content differs since this was last asked.

        Args:
            names: whose content to compare; None for a cheap look at all of them.
        """


class Culprit(NamedTuple):
    """A write to watched memory that changed it.

    Attributes:
        names: full names of what changed.
        where: ``file:line`` of the user's code, relative to the working directory if below it.
        function: the function that line is in.
        operation: ``aten.add_``; ``line`` for a write by that line that no dispatcher saw;
            ``unseen`` for one at or before that line, where lines are not traced.
        stack: the user's frames as ``file:line in function``, outermost first, the last six.
    """

    names: tuple[str, ...]
    where: str
    function: str
    operation: str
    stack: tuple[str, ...]


class Pinpoint:
    """Puts every write to watched memory down to the user's line and the operation.

    Two witnesses. A dispatch mode sees the operators that may write; it runs compiled models
    eagerly meanwhile, so that they can be compiled afterwards. Line tracing of the user's code
    looks after every line, for writes that pass by the dispatcher (numpy, ctypes, compiled code).
    A write inside a library is put down to the user's line that called it.

    Limits: threads that ran before `start`, and threads started in C, are not traced; their writes
    are put down to the line at which they were noticed. Other processes (DataLoader workers) are
    not watched. Two threads of user code that run at once may be taken for each other. What is
    written and undone within one line is not seen, nor is a write of equal bytes.

    Args:
        memory: the memory to watch.

    Attributes:
        culprits: every change with its line, in order.
        notes: what could not be done, and why.
    """

    def __init__(self, memory: Memory) -> None:
        self.culprits: list[Culprit] = []
        self.notes: list[str] = []
        self._memory = memory
        self._first: dict[str, Culprit] = {}
        self._lines = LineTracing(torch.compiler.disable(self._after_line))
        self._mode = dispatching.WriteDispatch(dispatching.Ranges([]), self._around_operator)
        self._stance = EagerStance()
        self._running = False
        self._thread = 0
        self._asking = 0
        self._lock = threading.Lock()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def start(self) -> None:
        """Begin, from now on: what changed before is nobody's. Twice is once."""
        if self._running:
            return
        self._thread, self._running = threading.get_ident(), True
        try:
            self.forget()
            self._stance.enter()
            self._mode.enter()
            if refusal := self._lines.start():
                self._note(refusal)
        except BaseException:
            self.stop()
            raise

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def stop(self) -> None:
        """Take back what `start` did, also what belongs to others' frames.

        What cannot be taken back from here is off: the mode while an operator runs below it, and
        what is another thread's. The mode goes with the next `stop` there, a trace by itself.
        """
        try:
            if self._running and self._lines.is_tracing_here:
                self._after_line(sys._getframe(1), None)
        finally:
            self._running = False
            self._lines.stop()
            self._mode.leave()
            self._stance.leave()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def catch_up(self) -> None:
        """Look now: what changed since the last line event was written by the line that runs."""
        if self._running and self._lines.is_tracing_here:
            self._after_line(sys._getframe(1), None)

    def acquit(self, name: str) -> None:
        """This tensor has the bytes again that it had: who wrote until now is no culprit."""
        self._first.pop(name, None)

    def culprit_of(self, name: str) -> Culprit | None:
        """Who changed this tensor first since the last `forget`."""
        return self._first.get(name)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forget(self) -> None:
        """Begin anew: what changed until now is answered, and where the memory is, asked again."""
        self._first.clear()
        if self._running:
            self._changed(None)
            self._mode.ranges = dispatching.Ranges(self._memory.ranges())

    def _around_operator(self, names: list[str], operation: str, has_run: bool) -> None:
        # Asked before as well, so that an operator is not blamed for what was there already.
        before = "line" if self._lines.is_tracing_here else UNSEEN
        self._look(names, operation if has_run else before, sys._getframe(1), None)

    def _after_line(self, frame: FrameType | None, line: int | None) -> None:
        self._look(None, "line", frame, line)

    def _look(
        self, names: list[str] | None, operation: str, frame: FrameType | None, line: int | None
    ) -> None:
        try:
            changed = self._changed(names)
        except Exception as error:
            # The user's line must not fail for it: this runs in the middle of any statement.
            self._mode.on = self._lines.on = False
            self._note(f"pinpointing ended, its look failed: {type(error).__name__}: {error}")
            return
        if changed:
            self._accuse(changed, operation, frame, line)

    def _changed(self, names: list[str] | None) -> list[str]:
        me = threading.get_ident()
        if self._asking == me or _is_capturing():
            return []
        with self._lock:
            self._asking = me
            try:
                with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
                    return list(self._memory.changed(names))
            finally:
                self._asking = 0

    def _accuse(
        self, names: list[str], operation: str, frame: FrameType | None, line: int | None
    ) -> None:
        # Autograd's device threads have no frames of the user: the one that waits for them has.
        found = frames.users(frame) or frames.users(sys._current_frames().get(self._thread))
        stack = [(user, user.f_lineno) for user in found[:DEPTH]]
        if stack and line is not None:
            stack[0] = stack[0][0], line
        if operation == "line" and self._lines.is_shared():
            self._note(SHARED)
        culprit = Culprit(
            names=tuple(names),
            where=frames.place(*stack[0]) if stack else NOWHERE,
            function=stack[0][0].f_code.co_qualname if stack else "",
            operation=operation,
            stack=tuple(f"{frames.place(*s)} in {s[0].f_code.co_qualname}" for s in stack[::-1]),
        )
        self.culprits.append(culprit)
        for name in names:
            self._first.setdefault(name, culprit)

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _is_capturing() -> bool:
    """Whether a CUDA graph is being captured: reading would break it."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
