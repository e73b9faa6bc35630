"""Findings as they are told: equal ones on several modules once, worst first."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from frostline._collapsing import collapse
from frostline.auditing.finding import SEVERITIES, Finding
from frostline.auditing.telling.printable import name, printable

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Group:
    """Places of a model at which the same is found.

    Attributes:
        places: full names of modules or tensors, in the order of the findings.
        findings: for each thing that is found there, its finding at each of the places; worst
            first.
    """

    places: tuple[str, ...]
    findings: tuple[tuple[Finding, ...], ...]

    def where(self, width: int, most: int) -> str:
        """The places, numbered siblings as one; each at most ``width`` wide, at most ``most``."""
        patterns = collapse(self.places)
        shown = ", ".join(name(pattern, width) for pattern, _ in patterns[:most])
        left = sum(count for _, count in patterns[most:])
        return shown + (f" and {left:,} more" if left else "")


def grouped(findings: Iterable[Finding]) -> list[Group]:
    """Group by place; places with the same findings become one group.

    What is only to be known stands apart, so that it does not tear errors asunder. Findings are
    the same if they have code, severity and message in common, but for numbers and
    the name of the place in the message.

    Example:
        >>> seen = [Finding("FRZ101", "n", "error", f"bn{i}", "writes 2", "x") for i in range(3)]
        >>> [group.where(40, 3) for group in grouped(seen)]
        ['bn{0-2}']
    """
    at: dict[tuple[bool, str], list[Finding]] = {}
    for finding in findings:
        at.setdefault((finding.severity == "info", finding.where), []).append(finding)
    alike: dict[Hashable, list[list[Finding]]] = {}
    for found in at.values():
        found.sort(key=_badness)
        alike.setdefault(tuple(map(_kind, found)), []).append(found)
    groups = [
        Group(
            tuple(found[0].where for found in members),
            tuple(zip(*members, strict=True)),
        )
        for members in alike.values()
    ]
    return sorted(groups, key=lambda group: _badness(group.findings[0][0]))


def message(alike: tuple[Finding, ...]) -> str:
    """What these findings say, once; whose values they are, if those differ."""
    first = alike[0]
    if all(other.message == first.message for other in alike):
        return printable(first.message)
    return f"{printable(first.message)} (said of {name(first.where, 40)})"


def mends(alike: tuple[Finding, ...]) -> tuple[str, ...]:
    """The different pieces of code that mend these findings."""
    return tuple(dict.fromkeys(one.mend for one in alike if one.mend))


def _kind(finding: Finding) -> Hashable:
    said, where = _NUMBER.sub("0", finding.message), _NUMBER.sub("0", finding.where)
    return finding.code, finding.severity, said.replace(where, "\0") if where else said


def _badness(finding: Finding) -> tuple[int, str]:
    return SEVERITIES.index(finding.severity), finding.code
