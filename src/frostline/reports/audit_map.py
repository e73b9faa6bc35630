"""The model as the script of an audit's page reads it: in columns, since modules are many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from frostline.reports.showing import shown

_STATES = ("frozen", "trainable", "mixed", "none")


class Places:
    """Where names are on the map of a result."""

    def __init__(self, places: Sequence[Mapping[str, Any]]) -> None:
        self._of: dict[str, int] = {}
        for i, place in enumerate(places):
            self._of.setdefault(place["name"], i)

    def at(self, name: str) -> int:
        """The module of this name, or the innermost around it; 0, the model, if there is none."""
        while name and name not in self._of:
            name = name.rpartition(".")[0]
        return self._of.get(name, 0)


class Texts:
    """Texts that occur often, each once."""

    def __init__(self) -> None:
        self.all: dict[str, int] = {}

    def put(self, text: str) -> int:
        """The position of ``text`` among :attr:`all`."""
        return self.all.setdefault(text, len(self.all))


def data(result: Mapping[str, Any], group_of: Sequence[int]) -> dict[str, Any]:
    """What the script reads: the modules in columns, the findings, and what changes in each module.

    Args:
        result: version 1 of an audit.
        group_of: for each finding, the position of its group on the page.
    """
    rows, texts, places = result["map"], Texts(), Places(result["map"])
    names = [shown(row["name"]) for row in rows]
    return {
        "model": shown(result["model"]),
        "name": names,
        "own": [_own_from(names, rows, i) for i in range(len(rows))],
        "type": [texts.put(shown(row["type"], 80)) for row in rows],
        "parent": [row["parent"] for row in rows],
        "parameters": [row["parameters"] for row in rows],
        "state": [_STATES.index(row["state"]) for row in rows],
        "held": [i for i, row in enumerate(rows) if row["held"]],
        "training": [int(row["training"]) for row in rows],
        "now": _by_place(places, result["will_change"]),
        "later": _by_place(places, _only_later(result)),
        "findings": [
            _finding(finding, group, places, texts)
            for finding, group in zip(result["findings"], group_of, strict=True)
        ],
        "texts": list(texts.all),
    }


def _only_later(result: Mapping[str, Any]) -> list[str]:
    now = set(result["will_change"])
    return [name for name in result["after_train"] if name not in now]


def _own_from(names: Sequence[str], rows: Sequence[Mapping[str, Any]], i: int) -> int:
    """Where a module's own name begins in its full name; at its end if it adds nothing."""
    parent = rows[i]["parent"]
    if parent < 0 or not names[parent]:
        return 0
    if names[i] == names[parent]:
        return len(names[i])
    above = names[parent] + "."
    return len(above) if names[i][: len(above)] == above else 0


def _by_place(places: Places, tensors: Iterable[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name in tensors:
        owner, _, own = name.rpartition(".")
        found.setdefault(places.at(owner), []).append(shown(own))
    return found


def _finding(finding: Mapping[str, Any], group: int, places: Places, texts: Texts) -> list[int]:
    told = shown(finding["where"]), shown(finding["message"], 400), lines(finding["mend"])
    return [places.at(finding["where"]), group, *map(texts.put, told)]


def lines(code: str) -> str:
    """Code of several lines, each as it can be shown."""
    return "\n".join(shown(line, 2000) for line in code.split("\n"))
