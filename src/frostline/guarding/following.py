"""Flags may change while a script runs: gradual unfreezing, a freeze after a warm-up."""

from __future__ import annotations

from torch import nn

from frostline._names import named_tensors
from frostline.guarding import target
from frostline.guarding.freeze_guard import FreezeGuard
from frostline.selection import select


def keep(guard: FreezeGuard, model: nn.Module, chosen: list[str]) -> None:
    """What was chosen by name stays watched, whatever its flag says."""
    places = select(model, list(chosen)).tensors if chosen else []
    named = {id(place.tensor) for place in places}
    for watched in guard._engine.target.tensors:
        watched.by_flag = watched.by_flag and id(watched.tensor) not in named
    guard._engine.identity.rebase()


def settle(guard: FreezeGuard) -> None:
    """Read every byte; with that the evidence goes which keeps optimizers of the past in memory."""
    with guard._lock:
        guard._full_check()


class Flags:
    """Keeps the guard of one model in step with the flags of its parameters."""

    def __init__(self, model: nn.Module, guard: FreezeGuard) -> None:
        self._model, self._guard = model, guard
        self._flags = _flags(model)

    def follow(self) -> None:
        """Let go of what is trainable now, checked a last time; watch what is frozen now.

        To be called before a forward: what that writes to an unfrozen norm is no alarm any more.
        """
        flags = _flags(self._model)
        if flags == self._flags:
            return
        self._flags = flags
        guard = self._guard
        with guard._lock, guard._timed():
            free = self._free()
            guard._handle([s for w in free for s in guard._engine.release(w, "became trainable")])
            guard._membership()
            guard._engine.identity.rebase()
            guard._engine._bind()

    def _free(self) -> list[target.Watched]:
        """What hangs where it hung, and is meant to be frozen no more."""
        live = {id(entry.tensor) for entry in named_tensors(self._model)}
        frozen = {id(w.tensor) for w in target.by_flags(self._model, self._guard._asked[1]).tensors}
        return [w for w in self._guard._engine.target.tensors if id(w.tensor) in live - frozen]


def _flags(model: nn.Module) -> list[bool]:
    return [p.requires_grad for p in model.parameters()]
