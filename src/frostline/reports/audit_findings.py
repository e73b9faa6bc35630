"""The findings of an audit as its page lists them: by rule, numbered siblings once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frostline._collapsing import groups
from frostline.reports.audit_map import Places, lines
from frostline.reports.showing import Names, listed, shown

_NUMBER = re.compile(r"\d+")
_ENTRIES = 30  # of a group; the map has the others
_PLACES = 12  # patterns of an entry
_MENDS = 12  # different lines of code in a group


@dataclass
class Entry:
    """Findings that say the same, but for numbers and the name of the place.

    Attributes:
        message: of the first.
        count: how many findings.
        places: patterns for where, how many each stands for, and where its first is on the map.
        left: how many findings are in none of ``places``.
    """

    message: str
    count: int
    places: list[tuple[str, int, int]]
    left: int


@dataclass
class Group:
    """All findings of one rule and severity.

    Attributes:
        code, name, severity: of the rule.
        count: how many findings.
        entries: the first of them.
        left: how many findings are in none of ``entries``.
        mends: the different ones, the first of them.
        mends_left: how many different ones are not in ``mends``.
        tensors: frozen tensors that they change.
    """

    code: str
    name: str
    severity: str
    count: int
    entries: list[Entry]
    left: int
    mends: list[str]
    mends_left: int
    tensors: Names


def grouped(result: Mapping[str, Any]) -> tuple[list[Group], list[int]]:
    """The groups, worst first, and for each finding the position of its group."""
    members: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for finding in result["findings"]:
        members.setdefault((finding["severity"], finding["code"]), []).append(finding)
    position = {key: i for i, key in enumerate(members)}
    places = Places(result["map"])
    made = [_group(findings, places) for findings in members.values()]
    return made, [position[f["severity"], f["code"]] for f in result["findings"]]


def _group(findings: Sequence[Mapping[str, Any]], places: Places) -> Group:
    first = findings[0]
    alike: dict[str, list[Mapping[str, Any]]] = {}
    for finding in findings:
        alike.setdefault(_kind(finding), []).append(finding)
    entries = list(alike.values())[:_ENTRIES]
    mends = list(dict.fromkeys(lines(f["mend"]) for f in findings if f["mend"]))
    tensors = dict.fromkeys(name for f in findings for name in f["tensors"])
    return Group(
        code=first["code"],
        name=first["name"],
        severity=first["severity"],
        count=len(findings),
        entries=[_entry(members, places) for members in entries],
        left=len(findings) - sum(map(len, entries)),
        mends=mends[:_MENDS],
        mends_left=max(0, len(mends) - _MENDS),
        tensors=listed(list(tensors)),
    )


def _kind(finding: Mapping[str, Any]) -> str:
    """The message without what differs from place to place."""
    # Numbers first: a place may be called "0", and then it is in many numbers.
    where, message = (_NUMBER.sub("0", finding[key]) for key in ("where", "message"))
    return message.replace(where, "") if where else message


def _entry(members: Sequence[Mapping[str, Any]], places: Places) -> Entry:
    at = {shown(f["where"]): places.at(f["where"]) for f in members}
    found = [(pattern, len(names), at[names[0]]) for pattern, names in groups(at)][:_PLACES]
    left = max(0, len(at) - sum(count for _, count, _ in found))
    return Entry(shown(members[0]["message"], 400), len(members), found, left)
