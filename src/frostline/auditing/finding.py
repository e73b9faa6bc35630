"""What an audit finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")
"""Worst first: will change or train wrongly; may; to be known."""


@dataclass(frozen=True)
class Finding:
    """Something that a rule sees in a model.

    Attributes:
        code: of the rule, as ``"FRZ101"``; ``frostline rule FRZ101`` prints its page.
        name: of the rule, as ``"batchnorm-stats-update"``.
        severity: ``"error"``: something frozen will change, or training will go wrong;
            ``"warning"``: it may; ``"info"``: to be known.
        where: full name of the module or tensor, wrapper components left out; ``""`` is the model.
        message: the fact, with its values.
        mend: the plain code that mends it, for the names ``model`` and ``optimizer``; lines that
            begin with ``#`` where code of one's own has to change.
        tensors: full names of the frozen tensors that this changes or may change.
    """

    code: str
    name: str
    severity: Severity
    where: str
    message: str
    mend: str
    tensors: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {**asdict(self), "tensors": list(self.tensors)}


def worst_first(findings: list[Finding]) -> list[Finding]:
    """By severity, then by code; within a code in the order of the model."""
    return sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.code))
