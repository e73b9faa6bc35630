"""The record that a held module carries: plain data in its ``__dict__``.

The class of a held module holds machinery only; whether *this object* is held, and how, stands
here. There is no tensor, module or part in it, so that deepcopy, pickle and ``copy.copy`` carry it
along and drag nothing with it. Records are immutable: a shallow copy of a module shares its record
without sharing its fate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import nn

Stats = Literal["hold", "batch", "update"]

RECORD = "_frostline_record"
# Present while the record keeps the module in eval mode: what the forward pass asks for.
EVAL = "_frostline_eval"
# Present while a norm normalises with the batch and leaves its statistics alone.
BATCH = "_frostline_batch"
# The last mode that somebody asked for while the module was held in eval, and the one before it.
ASKED = "_frostline_asked"
# Present until the first forward of a module that may write to itself has been compared.
WATCH = "_frostline_watch"
# Calls that the hold ignored: what -> [count, "file:line" of the first].
IGNORED = "_frostline_ignored"
# The FrozenParts whose root is this module.
PARTS = "_frostline_parts"


class Slot(NamedTuple):
    """A frozen parameter of the module, by its name there.

    Attributes:
        name: attribute name within the module.
        prior: ``requires_grad`` before the first freeze.
        parts: ids of the parts that cover it.
    """

    name: str
    prior: bool
    parts: tuple[str, ...]


class Hold(NamedTuple):
    """What one part asks of one module.

    Attributes:
        part: id of the part.
        eval: whether the module must stay in eval mode.
        stats: what a normalisation layer does with its running statistics, None for others.
    """

    part: str
    eval: bool
    stats: Stats | None = None


@dataclass(slots=True)
class Record:
    """All that parts ask of one module, and what it was before.

    Nobody writes to a record; ``frozen=True`` would say so at five times the cost, for each of
    ten thousand modules.

    Attributes:
        holds: one for each part that covers the module.
        slots: its frozen parameters.
        was_training: its mode before the first hold in eval.
        eval: whether any hold keeps the module in eval mode.
        batch_stats: whether the module normalises with the batch and leaves its statistics alone.
    """

    holds: tuple[Hold, ...] = ()
    slots: tuple[Slot, ...] = ()
    was_training: bool = True
    eval: bool = field(init=False)
    batch_stats: bool = field(init=False)

    def __post_init__(self) -> None:
        self.eval = any(hold.eval for hold in self.holds)
        self.batch_stats = not self.eval and any(hold.stats == "batch" for hold in self.holds)

    @property
    def freed_gradients(self) -> bool:
        """Whether a parameter of the module was trainable before."""
        return any(slot.prior for slot in self.slots)


def get(module: nn.Module) -> Record | None:
    """The record of ``module``, or None."""
    record: Record | None = vars(module).get(RECORD)
    return record


def covers(module: nn.Module, parameter: str, part: str | None = None) -> bool:
    """Whether some part, or this one, keeps a parameter of ``module`` frozen, by its name there."""
    record = get(module)
    slots = record.slots if record is not None else ()
    return any(s.name == parameter and (part is None or part in s.parts) for s in slots)


def keeps_buffers(module: nn.Module, part: str | None = None) -> bool:
    """Whether some part, or this one, has the buffers of ``module`` among its members."""
    record = get(module)
    holds = record.holds if record is not None else ()
    return any(h.stats != "update" and (part is None or h.part == part) for h in holds)


def is_held(module: nn.Module) -> bool:
    """Whether ``module`` is kept in eval mode."""
    return EVAL in module.__dict__


def put(module: nn.Module, record: Record) -> None:
    """Give ``module`` this record; its mode follows.

    Entering eval remembers the mode; leaving it gives the last mode that was asked for, or the
    remembered one.
    """
    own = module.__dict__
    if record.eval:
        if EVAL not in own:
            if record.was_training != own["training"]:
                record = Record(record.holds, record.slots, own["training"])
            own["training"], own[EVAL] = False, True
    elif own.pop(EVAL, False):
        own["training"] = asked_modes(module, record)[0]
        own.pop(ASKED, None)
    own.pop(BATCH, None)
    if record.batch_stats:
        own[BATCH] = True
    if record.holds or record.slots:
        own[RECORD] = record
        return
    for key in (RECORD, WATCH, IGNORED):
        own.pop(key, None)


def asked_modes(module: nn.Module, record: Record) -> tuple[bool, bool]:
    """The mode that was last asked for while ``module`` was held, and the one before it."""
    was = record.was_training
    modes: tuple[bool, bool] = module.__dict__.get(ASKED, (was, was))
    return modes


def without_part(record: Record, part: str) -> Record:
    """The record when ``part`` asks for nothing any more; slots that nobody covers are dropped."""
    slots = [s._replace(parts=tuple(p for p in s.parts if p != part)) for s in record.slots]
    return Record(
        tuple(hold for hold in record.holds if hold.part != part),
        tuple(slot for slot in slots if slot.parts),
        record.was_training,
    )
