"""Line tracing of user code: a look at the memory after every line that the user wrote.

It catches what no dispatcher sees: numpy, ctypes, `read(2)`, compiled kernels, operators that lie.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch._dynamo.eval_frame import skip_code

from frostline.guarding.pinpointing import frames

Look = Callable[[FrameType | None, int | None], None]
"""Called with the frame and the line that have just been executed."""


class LineTracing:
    """Trace functions of this thread, of its frames, and of threads that are started from now on.

    A thread that runs already when this starts is not traced: its writes are put down at the line
    that another thread was at. In a forked process nothing is traced.

    Attributes:
        on: whether events are followed; off, whatever could not be taken back does nothing.
    """

    def __init__(self, look: Look) -> None:
        self.on = False
        self._look = look
        self._process = 0

    def is_following(self) -> bool:
        """Whether events are followed, in this process."""
        return self.on and os.getpid() == self._process

    @property
    def is_tracing_here(self) -> bool:
        """Whether the lines of the running thread are followed."""
        return self.is_following() and sys.gettrace() == self._on_call

    def start(self) -> str | None:
        """Follow the user's lines; why this thread's are not followed, or None."""
        self.on, self._process = True, os.getpid()
        if threading.gettrace() is None:
            threading.settrace(self._on_call)
        if sys.gettrace() is None:
            for frame in filter(frames.is_user, frames.callers(sys._getframe(1))):
                frame.f_trace = _FrameTrace(self, frame)
            sys.settrace(self._on_call)
            return None
        return (
            "lines are not traced: a debugger or a coverage tool traces this thread already; "
            "writes by numpy, ctypes and other foreign code are named by no line. Run without it."
        )

    def stop(self) -> None:
        """Take back what is ours; a tracer that somebody else set since then stays."""
        self.on = False
        if threading.gettrace() == self._on_call:
            threading.settrace(None)
        if sys.gettrace() == self._on_call:
            sys.settrace(None)
        # Frames of other threads too. Those of suspended generators were given back on `yield`.
        for top in sys._current_frames().values():
            for frame in filter(self._is_traced, frames.callers(top)):
                frame.f_trace = frame.f_trace.previous  # type: ignore[union-attr]

    def is_shared(self) -> bool:
        """Whether another thread is at a line of the user's, not waiting in a library."""
        tops = sys._current_frames()
        del tops[threading.get_ident()]
        # Above the line may be this very tracing, which torch calls.
        return any(self._is_traced(next(frames.outside(top), top)) for top in tops.values())

    def _is_traced(self, frame: FrameType) -> bool:
        return isinstance(frame.f_trace, _FrameTrace) and frame.f_trace.tracing is self

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> _FrameTrace | None:
        if not self.is_following():
            # Stopped from another thread, or forked: this thread can take it back only itself.
            if sys.gettrace() == self._on_call:
                sys.settrace(None)
            return None
        if not frames.is_user(frame):
            return None
        # What was written since the caller's line began is the caller's, not this frame's.
        self._look(frame.f_back, None)
        return _FrameTrace(self, frame)

    def after(self, frame: FrameType, line: int) -> None:
        """Look: ``line`` of ``frame`` has been executed."""
        self._look(frame, line)


class _FrameTrace:
    """The trace function of one frame: it remembers the line that runs."""

    __slots__ = ("line", "previous", "tracing")

    def __init__(self, tracing: LineTracing, frame: FrameType) -> None:
        self.tracing = tracing
        self.previous = frame.f_trace
        self.line = frame.f_lineno

    def __call__(self, frame: FrameType, event: str, arg: Any) -> _FrameTrace | None:
        if not self.tracing.is_following():
            frame.f_trace = self.previous
            return None
        if event in ("line", "return"):
            self.tracing.after(frame, self.line)
            self.line = frame.f_lineno
        if event == "return":
            # Also a `yield`: a generator that is never resumed must not keep our function.
            frame.f_trace = self.previous
            return None
        return self


# Within compiled code the compiler would look at these frames too, and compile them.
for _function in (
    LineTracing._on_call,
    LineTracing.is_following,
    LineTracing.after,
    _FrameTrace.__init__,
    _FrameTrace.__call__,
    frames.is_user,
    frames.is_library_file.__wrapped__,
):
    skip_code(_function.__code__)
