"""The record that a held module carries: plain data in its ``__dict__``.

The class of a held module holds machinery only; whether *this object* is held, and how, stands
here. There is no tensor, module or part in it, so that deepcopy, pickle and ``copy.copy`` carry it
along and drag nothing with it. Records are immutable: a shallow copy of a module shares its record
without sharing its fate.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import nn

Stats = Literal["hold", "batch", "update"]

RECORD = "_frostline_record"
# The last mode that somebody asked for while the module was held in eval.
ASKED = "_frostline_asked"
# Present until the first forward of a module that may write to itself has been compared.
WATCH = "_frostline_watch"
# Calls that the hold ignored: what -> [count, "file:line" of the first].
IGNORED = "_frostline_ignored"
# The FrozenParts whose root is this module.
PARTS = "_frostline_parts"


@dataclass(frozen=True)
class Slot:
    """A frozen parameter of the module, by its name there.

    Attributes:
        name: attribute name within the module.
        prior: ``requires_grad`` before the first freeze.
        parts: ids of the parts that cover it.
    """

    name: str
    prior: bool
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Hold:
    """What one part asks of one module.

    Attributes:
        part: id of the part.
        eval: whether the module must stay in eval mode.
        stats: what a normalisation layer does with its running statistics, None for others.
    """

    part: str
    eval: bool
    stats: Stats | None = None


@dataclass(frozen=True)
class Record:
    """All that parts ask of one module, and what it was before.

    Attributes:
        holds: one for each part that covers the module.
        slots: its frozen parameters.
        was_training: its mode before the first hold in eval.
        eval: whether any hold keeps it in eval mode.
        batch_stats: whether it normalises with the batch and leaves its statistics alone.
    """

    holds: tuple[Hold, ...] = ()
    slots: tuple[Slot, ...] = ()
    was_training: bool = True
    eval: bool = field(init=False, default=False)
    batch_stats: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        # Derived once: the forward pass reads these for every module and every call.
        eval_ = any(hold.eval for hold in self.holds)
        batch = not eval_ and any(hold.stats == "batch" for hold in self.holds)
        object.__setattr__(self, "eval", eval_)
        object.__setattr__(self, "batch_stats", batch)

    @property
    def freed_gradients(self) -> bool:
        """Whether a parameter of the module was trainable before."""
        return any(slot.prior for slot in self.slots)


def get(module: nn.Module) -> Record | None:
    """The record of ``module``, or None."""
    record: Record | None = vars(module).get(RECORD)
    return record


def is_held(module: nn.Module) -> bool:
    """Whether ``module`` is kept in eval mode."""
    record = get(module)
    return record is not None and record.eval


def put(module: nn.Module, record: Record) -> None:
    """Give ``module`` this record; its mode follows.

    Entering eval remembers the mode; leaving it gives the last mode that was asked for, or the
    remembered one.
    """
    own, old = vars(module), get(module)
    was_eval = old is not None and old.eval
    if record.eval and not was_eval:
        record = replace(record, was_training=own["training"])
        own["training"] = False
    elif was_eval and not record.eval:
        own["training"] = own.pop(ASKED, record.was_training)
    if record.holds or record.slots:
        own[RECORD] = record
        return
    for key in (RECORD, WATCH, IGNORED):
        own.pop(key, None)


def without_part(record: Record, part: str) -> Record:
    """The record when ``part`` asks for nothing any more; slots that nobody covers are dropped."""
    slots = tuple(
        replace(slot, parts=tuple(p for p in slot.parts if p != part)) for slot in record.slots
    )
    return replace(
        record,
        holds=tuple(hold for hold in record.holds if hold.part != part),
        slots=tuple(slot for slot in slots if slot.parts),
    )
