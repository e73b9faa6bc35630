"""GuardReport: what a guard saw, how it looked, and what it can vouch for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from frostline._results import Change, Result
from frostline.guarding import telling


@dataclass(frozen=True)
class Tier:
    """One way of looking: whether it ran, and what it can and cannot see.

    Attributes:
        name: ``preflight``, ``identity``, ``pages``, ``content`` or ``full check``.
        ran: whether it ran at least once.
        tensors: how many tensors it watched.
        nbytes: how many bytes it vouches for.
        looks: how often it looked.
        seconds: what all of its looks took together.
        sees: what it notices, and when at the latest.
        blind: what it does not notice.
        why_not: why it did not run, or not on everything; empty if it did.
    """

    name: str
    ran: bool
    tensors: int
    nbytes: int
    looks: int
    seconds: float
    sees: str
    blind: str
    why_not: str = ""


@dataclass(frozen=True)
class Idle:
    """A trainable tensor that never changed under the guard, and why.

    Attributes:
        name: full name.
        reason: ``in no optimizer``, ``no gradient``, ``gradient was zero``, or ``unknown``.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class Finding:
    """Something that will or may change a frozen tensor, seen before the first step.

    Attributes:
        name: full name of the tensor or module; elided nowhere.
        what: what is the matter.
        mend: what to do about it.
    """

    name: str
    what: str
    mend: str


@dataclass(eq=False)
class GuardReport(Result):
    """What a guard saw from its entry until now.

    Attributes:
        target: what was guarded, in words.
        frozen: how many frozen tensors, each counted once whatever its names.
        nbytes: how many bytes they hold.
        steps: optimizer steps (rounds, where several optimizers take turns) that were seen.
        changes: every tensor that was seen changed, drift first, each with its first step.
        tiers: the ways of looking.
        coverage: the steps within which every byte is read or witnessed; None if never.
        unchanged: whether a full check or an unbroken record of pages says that no byte changed of
            what is watched; a cast counts as a change here.
        let_go: how many tensors were thawed on the way, and are watched no more.
        preflight: what was found before the first step.
        idle: trainable tensors that never changed.
        notes: what is worth knowing and no alarm (equal bytes written, tensors let go, casts).
        windows: for each answered change the steps that may have run on changed bytes.
        seconds: what entry, steps and full checks took.
        nothing_ran: whether not a single step was seen.
    """

    target: str
    frozen: int
    nbytes: int
    steps: int = 0
    changes: list[Change] = field(default_factory=list)
    tiers: list[Tier] = field(default_factory=list)
    coverage: int | None = None
    unchanged: bool = False
    let_go: int = 0
    preflight: list[Finding] = field(default_factory=list)
    idle: list[Idle] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    windows: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    nothing_ran: bool = True

    @property
    def drift(self) -> Sequence[Change]:
        """The changes that are more than a cast, a move or an addition."""
        return [change for change in self.changes if change.severity == "drift"]

    @property
    def ok(self) -> bool:
        """Whether something ran, and nothing frozen drifted."""
        return not self.nothing_ran and not self.drift

    def __str__(self) -> str:
        return telling.report(self)

    def __repr__(self) -> str:
        said = "ok" if self.ok else f"{len(self.drift)} changed"
        return f"<GuardReport {self.target}, {self.steps} steps, {said}>"

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "version": 1,
            "ok": self.ok,
            "target": self.target,
            "frozen": self.frozen,
            "bytes": self.nbytes,
            "steps": self.steps,
            "nothing_ran": self.nothing_ran,
            "unchanged": self.unchanged,
            "let_go": self.let_go,
            "coverage": self.coverage,
            "changes": [change.to_dict() for change in self.changes],
            "preflight": [vars(finding) for finding in self.preflight],
            "idle": [vars(entry) for entry in self.idle],
            "tiers": [vars(tier) for tier in self.tiers],
            "windows": list(self.windows),
            "notes": list(self.notes),
            "seconds": dict(self.seconds),
        }
