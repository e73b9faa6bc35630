"""Plain classes for the length of a block, then the hold again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from frostline.freezing import held_class, live_parts, thawing
from frostline.freezing.machinery import is_held_class
from frostline.freezing.record import ASKED, BATCH, EVAL, IGNORED, PARTS, RECORD, WATCH

_OURS = (RECORD, EVAL, BATCH, ASKED, WATCH, IGNORED, PARTS)


@contextmanager
def released(model: nn.Module) -> Iterator[None]:
    """Take everything of ours off ``model``; modules that were held stay in eval mode.

    A mode that somebody writes meanwhile counts as asked for.
    """
    taken = [(m, {key: vars(m)[key] for key in _OURS if key in vars(m)}) for m in model.modules()]
    swapped = {m for m, _ in taken if is_held_class(type(m))}
    for module, ours in taken:
        for key in ours:
            del vars(module)[key]
    for module in swapped:
        held_class.swap_out(module)
    try:
        yield
    finally:
        for module, ours in taken:
            if module in swapped:
                held_class.swap_in("", module, watched=WATCH in ours)
            _take_back(module, ours)
        _undo_again(part for _, ours in taken for part in ours.get(PARTS, ()))


def _undo_again(parts: Iterable[live_parts.LivePart]) -> None:
    """Undo the parts that were undone inside the block: their holds have just been taken back."""
    for part in parts:
        if part not in live_parts.all_parts():
            thawing.undo(part)


def _take_back(module: nn.Module, ours: dict[str, object]) -> None:
    own = vars(module)
    if EVAL in ours and own["training"]:
        ours[ASKED], own["training"] = (True, True), False
    own.update(ours)
