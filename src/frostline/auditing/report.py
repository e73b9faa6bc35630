"""The result of ``audit``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.nn.parameter import is_lazy

from frostline._results import Result
from frostline.auditing.finding import SEVERITIES, Finding
from frostline.auditing.inventory import Inventory
from frostline.auditing.step import How, Step
from frostline.auditing.subject import Subject
from frostline.summaries.tree import class_name


@dataclass(frozen=True, repr=False, eq=False)
class AuditReport(Result):
    """What a training step will change although it is frozen, why, and how to mend it.

    Attributes:
        model: name of the model's class.
        how: ``"read"`` off the modules, ``"predicted"`` without data, ``"measured"`` by a step.
        called: how the model was run and what stood for the loss, in words; empty where nothing
            was run.
        claim: what is claimed to be frozen: by what (``text``), and how many ``tensors``,
            ``elements``, ``bytes``.
        findings: worst first.
        will_change: full names of frozen tensors that a step changes, with every module in the
            mode that it is in.
        after_train: the same after ``model.train()``.
        undecided: full names of frozen tensors that a step may change, each with what it depends
            on.
        drift: by how much each of ``will_change`` moved, the largest difference of an element;
            empty unless measured.
        inventory: counts, norms, and the map of the model.
        ignored: how many findings were left out by :meth:`filter`.
        unused_ignores: ignores that hid nothing.
        notes: what else came to light.
    """

    model: str
    how: How
    called: str
    claim: Mapping[str, Any]
    findings: tuple[Finding, ...]
    will_change: tuple[str, ...]
    after_train: tuple[str, ...]
    undecided: Mapping[str, str]
    drift: Mapping[str, float]
    inventory: Inventory
    ignored: int = 0
    unused_ignores: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, subject: Subject, findings: Iterable[Finding], inventory: Inventory,
        notes: Iterable[str] = (),
    ) -> AuditReport:  # fmt: skip
        """The report about a subject."""
        frozen = {key: entry.name for key, entry in subject.claim.tensors.items()}
        now = subject.now
        tensors = [e.tensor for e in subject.claim.tensors.values() if not is_lazy(e.tensor)]
        return cls(
            model=class_name(subject.model),
            how=now.how,
            called=now.loss,
            claim={
                "text": subject.claim.text,
                "tensors": len(frozen),
                "elements": sum(t.numel() for t in tensors),
                "bytes": sum(t.numel() * t.element_size() for t in tensors),
            },
            findings=tuple(findings),
            will_change=tuple(name for key, name in frozen.items() if key in now.changed),
            after_train=tuple(n for key, n in frozen.items() if key in subject.after_train.changed),
            undecided=_undecided(frozen, now, subject.after_train),
            drift={n: now.drift[key] for key, n in frozen.items() if key in now.drift},
            inventory=inventory,
            notes=tuple(dict.fromkeys([*notes, *_notes(subject)])),
        )

    @property
    def ok(self) -> bool:
        """Whether no stable rule found an error or a warning."""
        return not self.worth("warning")

    def worth(self, severity: str) -> list[Finding]:
        """Findings of stable rules that are of this severity or worse.

        Args:
            severity: ``"error"``, ``"warning"`` or ``"info"``.
        """
        from frostline.auditing.rules import PREVIEW

        counted = SEVERITIES[: SEVERITIES.index(severity) + 1]
        return [f for f in self.findings if f.severity in counted and f.code not in PREVIEW]

    def filter(
        self,
        *,
        select: str | Sequence[str] = (),
        ignore: str | Sequence[str] = (),
        per_name_ignores: Mapping[str, str | Sequence[str]] | None = None,
    ) -> AuditReport:
        """The same report with some findings left out.

        Args:
            select: codes, their beginnings (``"FRZ1"``) or names of rules; none selects all.
            ignore: the same, to be left out.
            per_name_ignores: for names and patterns of modules and tensors, what to leave out.

        Raises:
            SelectionError: no rule has such a code or name.
        """
        from frostline.auditing.policy.policy import Policy, apply

        policy = Policy(select, ignore, per_name_ignores or {})
        kept, hidden, unused = apply(list(self.findings), policy)
        return replace(
            self,
            findings=tuple(kept),
            ignored=self.ignored + hidden,
            unused_ignores=(*self.unused_ignores, *unused),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON; docs/formats/audit-v1.schema.json describes them."""
        return {
            "version": 1,
            "ok": self.ok,
            "model": self.model,
            "modules": len(self.inventory.places),
            "how": self.how,
            "called": self.called,
            "claim": dict(self.claim),
            "findings": [finding.to_dict() for finding in self.findings],
            "will_change": list(self.will_change),
            "after_train": list(self.after_train),
            "undecided": dict(self.undecided),
            "drift": dict(self.drift),
            "ignored": self.ignored,
            "unused_ignores": list(self.unused_ignores),
            "notes": list(self.notes),
            "counts": self.inventory.counts,
            "norms": list(self.inventory.norms),
            "map": [dict(vars(place)) for place in self.inventory.places],
        }

    def save_html(self, path: str | Path) -> Path:
        """Write the report as one self-contained page, and give its path.

        Raises:
            FrostlineError: it cannot be written, or a file is there that is no page of ours.
        """
        from frostline.reports.audit_page import page
        from frostline.reports.page import prepare, write

        target = Path(path)
        where = prepare(target.parent.absolute(), target.name)
        write(where, page(self.to_dict()))
        return where

    def __str__(self) -> str:
        from frostline.auditing.telling.text import text

        return text(self)


def _undecided(frozen: Mapping[int, str], now: Step, after: Step) -> dict[str, str]:
    found = {**after.undecided, **now.undecided}
    sure = now.changed & after.changed
    return {name: found[key] for key, name in frozen.items() if key in found and key not in sure}


def _notes(subject: Subject) -> Iterable[str]:
    if not subject.claim.tensors:
        yield "nothing is claimed to be frozen, so nothing can leak: pass frozen='backbone'"
    if subject.now.raised:
        yield f"the step ended early: {subject.now.raised}"
    if subject.probes is not None:
        yield from subject.probes.notes
