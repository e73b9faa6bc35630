"""Whose doing it was: from the evidence to a cause, a sentence and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline._results import Severity
from frostline.guarding.evidence import TensorEvidence, WindowEvidence


@dataclass(frozen=True)
class Cause:
    """Why some tensors changed.

    Attributes:
        names: full names of the tensors.
        kind: one of :data:`KINDS`.
        text: a sentence with names, numbers and places.
        mend: what to do about it, a line of code where there is one.
        severity: ``"report"`` for casts that changed no more than the cast does.
    """

    names: tuple[str, ...]
    kind: str
    text: str
    mend: str | None
    severity: Severity = "drift"


def find(evidences: Sequence[TensorEvidence], window: WindowEvidence) -> list[Cause]:
    """One cause for each changed tensor, equal ones joined."""
    return [Cause(tuple(e.name for e in evidences), "unknown", "unknown", None)] * bool(evidences)
