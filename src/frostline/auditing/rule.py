"""A rule: a code, a name, a check, and a page, which is the docstring of its file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from frostline.auditing.finding import Finding, Severity
from frostline.auditing.subject import Subject

Status = Literal["stable", "preview"]
FAMILIES = {
    "0": "parameters",
    "1": "buffers and modes",
    "2": "optimizer",
    "3": "sharing",
    "4": "checkpoints and resume",
    "5": "normalisation and accumulation",
    "6": "determinism and caching",
    "7": "distributed and compile",
}


@dataclass(frozen=True)
class Sighting:
    """What a check sees at one place; the rule makes a :class:`Finding` of it.

    Attributes:
        where, severity, message, mend, tensors: as in :class:`Finding`.
    """

    where: str
    severity: Severity
    message: str
    mend: str
    tensors: tuple[str, ...] = ()


Check = Callable[[Subject], Iterator[Sighting]]


@dataclass(frozen=True)
class Rule:
    """One rule of the audit.

    Attributes:
        code: ``FRZ`` and three digits, the first of them its family; never used again for another.
        name: in kebab case; says what is wrong, as in "allow NAME".
        check: gives what it sees in a subject, and changes nothing.
        status: a rule in preview is shown, and does not fail a run: its precision is under 0.95.
        since: the version that brought it.
    """

    code: str
    name: str
    check: Check
    status: Status = "stable"
    since: str = "0.1"

    @property
    def family(self) -> str:
        """The family in words."""
        return FAMILIES[self.code[3]]

    @property
    def page(self) -> str:
        """The page of the rule: the docstring of its file, in Markdown."""
        return str(sys.modules[self.check.__module__].__doc__)

    def findings(self, subject: Subject) -> Iterator[Finding]:
        """Run the check."""
        for seen in self.check(subject):
            yield Finding(
                self.code, self.name, seen.severity, seen.where, seen.message, seen.mend,
                seen.tensors,
            )  # fmt: skip
