"""What the audit says of a set-up, beside what a real step did to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

import frostline as fl
from frostline.auditing.report import AuditReport
from tests.auditing.oracle import SetUp
from tests.auditing.oracle_rules import Evidence, is_right
from tests.auditing.oracle_truth import Truth, truth

Way = Literal["measured", "predicted", "read"]


@dataclass
class Outcome:
    """One set-up.

    Attributes:
        seed: of the set-up.
        leaks: whether a byte of the frozen set changed.
        said: by way, whether a leak is said: ``"leak"``, ``"clean"`` or ``"undecided"``.
        wrong: by way, the tensors about which it is wrong, now or after ``model.train()``.
        undecided: by way, how many tensors are left undecided.
        findings: by code, how many findings of the measured way are right, and how many there are.
        mistaken: findings that are not right, as ``CODE where``.
    """

    seed: int
    leaks: bool = False
    said: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, list[str]] = field(default_factory=dict)
    undecided: dict[str, int] = field(default_factory=dict)
    findings: dict[str, list[int]] = field(default_factory=dict)
    mistaken: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


WAYS: tuple[Way, ...] = ("measured", "predicted", "read")


def outcome(seed: int) -> Outcome:
    """Ask the audit in each way, and compare."""
    setup = SetUp.of(seed)
    now, after = truth(setup), truth(setup, train=True)
    found = Outcome(seed, leaks=bool(now.changed))
    for way in WAYS:
        report = audited(setup, way)
        found.said[way] = _said(report)
        found.wrong[way] = wrong(report, now, after)
        found.undecided[way] = len(report.undecided)
        if way == "measured":
            _judge(found, report, Evidence(setup, now, after))
    return found


def audited(setup: SetUp, way: Way) -> AuditReport:
    """The report on a set-up of its own, from the random state that the truth starts from."""
    built = setup.build()
    given = {"frozen": built.frozen, "optimizer": built.optimizer}
    if way != "read":
        batch = built.batch if way == "measured" else on_meta(built.batch)
        given |= {"batch": batch, "compute_loss": built.loss}
    torch.manual_seed(setup.seed)
    return fl.audit(built.model, **given)


def on_meta(batch: Any) -> Any:
    """The shapes of a batch, without its values."""
    if isinstance(batch, Tensor):
        return batch.to("meta")
    if isinstance(batch, Mapping):
        return {name: on_meta(value) for name, value in batch.items()}
    return tuple(map(on_meta, batch)) if isinstance(batch, tuple) else batch


def _said(report: AuditReport) -> str:
    if report.will_change:
        return "leak"
    return "undecided" if report.undecided else "clean"


def wrong(report: AuditReport, now: Truth, after: Truth) -> list[str]:
    """Tensors said to change that do not, or not said to change, nor undecided, that do."""
    found = [
        f"{name}{when}"
        for said, real, when in (
            (set(report.will_change), now.changed, ""),
            (set(report.after_train), after.changed, " after train()"),
        )
        for name in (said - real) | (real - said - set(report.undecided))
    ]
    return sorted(found)


def _judge(found: Outcome, report: AuditReport, evidence: Evidence) -> None:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for finding in report.findings:
        right = is_right(finding, evidence)
        counts[finding.code][0] += right
        counts[finding.code][1] += 1
        if not right:
            found.mistaken.append(f"{finding.code} {finding.severity} {finding.where}")
    found.findings = dict(sorted(counts.items()))
