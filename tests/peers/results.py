"""What was computed, kept in peers.json: by way and row, the kinds that do not hold."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.peers.matrix import HOLDS, Outcomes, rows_of, tried
from tests.peers.ways import WAYS

FILE = Path(__file__).with_name("peers.json")
LIBRARIES = ("torch", "timm", "lightning", "transformers")
Results = dict[str, dict[str, Outcomes]]  # by way and row


def versions() -> dict[str, str]:
    return {name: version(name).partition("+")[0] for name in LIBRARIES}


def write(results: Results) -> None:
    ways = {way: {row: _by_outcome(o) for row, o in rows.items()} for way, rows in results.items()}
    text = json.dumps({"versions": versions(), "ways": ways}, indent=1, ensure_ascii=False)
    FILE.write_text(text + "\n")


def read() -> tuple[dict[str, str], Results]:
    """The versions of the libraries, and the results."""
    stored = json.loads(FILE.read_text())
    return stored["versions"], {
        name: {row: _by_kind(row, stored["ways"][name][row]) for row in rows_of(way)}
        for name, way in WAYS.items()
    }


def _by_outcome(outcomes: Outcomes) -> dict[str, str]:
    """Without what holds; kinds in one string, so that the file has a line for each outcome."""
    found: dict[str, list[str]] = {}
    for kind, outcome in outcomes.items():
        if outcome != HOLDS:
            found.setdefault(outcome, []).append(kind)
    return {outcome: "; ".join(kinds) for outcome, kinds in found.items()}


def _by_kind(row: str, stored: dict[str, Any]) -> Outcomes:
    outcomes = dict.fromkeys(tried(row), HOLDS)
    for outcome, kinds in stored.items():
        outcomes |= dict.fromkeys(kinds.split("; "), outcome)
    return outcomes
