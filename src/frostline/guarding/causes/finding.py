"""Whose doing it was: from the evidence to a cause, a sentence and what to do about it.

Each rule asks for its own evidence, and the first whose evidence is there is believed. Where no
rule finds any, what is left is how the bytes were written, or "unknown": a wrong cause is worse
than none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from frostline._results import Severity
from frostline.guarding.causes import initialising, optimizing, rewriting, self_writing
from frostline.guarding.causes.evidence import TensorEvidence, WindowEvidence
from frostline.guarding.causes.verdicts import Scene, Verdict, selector, subjects

KINDS = (
    "running statistics",
    "statistics reset",
    "self-writing forward",
    "optimizer",
    "momentum only",
    "weight decay only",
    "load",
    "re-initialisation",
    "cast",
    "merge and unmerge",
    "averaging",
    "replaced object",
    "rebound data",
    "in-place operation",
    "write past autograd",
    "unknown",
)
"""Kinds of causes. The last five say how it was written, not by whom."""

_OF_MODULES = (
    "running statistics",
    "statistics reset",
    "self-writing forward",
    "merge and unmerge",
)

Rule = Callable[[TensorEvidence, Scene], Verdict | None]


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
    scene = Scene(evidences, window)
    alike: dict[tuple[str, str, str | None, Severity], list[tuple[str, str]]] = {}
    for e in evidences:
        verdict = _verdict(e, scene)
        key = verdict.kind, verdict.says, verdict.mend, verdict.severity
        alike.setdefault(key, []).append((e.name, verdict.subject))
    return [_cause(*key, found) for key, found in alike.items()]


def _cause(
    kind: str, says: str, mend: str | None, severity: Severity, found: list[tuple[str, str]]
) -> Cause:
    names, about = zip(*found, strict=True)
    text = says.replace("{}", subjects(about, "module" if kind in _OF_MODULES else "tensor"), 1)
    where = selector(about)
    return Cause(names, kind, text, mend and mend.replace("{}", where), severity)


def _verdict(e: TensorEvidence, scene: Scene) -> Verdict:
    found = (rule(e, scene) for rule in _RULES)
    known = next(filter(None, found), None) or initialising.applied(e, scene)
    return known or _how(e, scene)


_RULES: tuple[Rule, ...] = (
    rewriting.cast,
    rewriting.load,
    self_writing.statistics,
    rewriting.averaging,
    self_writing.spectral_norm,
    self_writing.max_norm,
    self_writing.observers,
    self_writing.own_code,
    rewriting.merging,
    initialising.by_function,
    optimizing.optimizer,
    initialising.by_values,
)


def _how(e: TensorEvidence, scene: Scene) -> Verdict:
    """Nobody is known; say how the bytes were written."""
    if e.tensor is None:
        return Verdict("replaced object", e.name, "nothing hangs at {} any more")
    if e.replaced:
        return Verdict("replaced object", e.name, "another tensor was put at {}")
    if e.pointer_moved:
        how = "set_() or a swap" if e.version_moved else ".data = ..., set_() or a swap"
        return Verdict("rebound data", e.name, f"{{}} was given other memory, by {how}")
    if e.version_moved and _counted_anyway(e, scene):
        return Verdict("unknown", e.name, _ANYWAY)
    if e.version_moved:
        return Verdict("in-place operation", e.name, "{} was written in place by code that ran")
    if e.version_moved is False:
        how = "through .data, numpy, a collective, or another library"
        return Verdict("write past autograd", e.name, f"{{}} was written past autograd, {how}")
    return Verdict("unknown", e.name, "unknown")


_ANYWAY = "unknown: beside a step or a load that left its bytes alone, something wrote to {}"


def _counted_anyway(e: TensorEvidence, scene: Scene) -> bool:
    """Whether the version counter moved by something that left the bytes alone."""
    return optimizing.counted(e, scene) or any(rewriting.loads_over(e, scene))
