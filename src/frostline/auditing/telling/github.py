"""Findings as annotations of a workflow of GitHub Actions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from frostline._results import elide
from frostline.auditing.finding import Finding
from frostline.auditing.telling.grouping import grouped, mends, message
from frostline.auditing.telling.printable import code

_LEVELS = {"error": "error", "warning": "warning", "info": "notice"}
_WIDTH, _PLACES, _MENDS = 100, 10, 10
_LONGEST = 2000  # of a message, in characters


def commands(findings: Iterable[Finding], file: str, line: int) -> str:
    r"""A line for each kind of finding, as a runner reads it from the log of a step.

    GitHub shows ten errors and ten warnings a step, so what is found at several places is told
    once, as on a terminal.

    Args:
        findings: in any order.
        file: path below the root of the repository.
        line: counted from 1.

    Example:
        >>> seen = Finding("FRZ101", "batchnorm-stats-update", "error", "bn", "writes", "m.eval()")
        >>> print(commands([seen], "train.py", 7))
        ::error file=train.py,line=7,title=FRZ101 batchnorm-stats-update::bn: writes%0Am.eval()
    """
    return "\n".join(_lines(findings, file, line))


def _lines(findings: Iterable[Finding], file: str, line: int) -> Iterator[str]:
    for group in grouped(findings):
        where = group.where(_WIDTH, _PLACES)
        for alike in group.findings:
            first = alike[0]
            # A name that ends with a colon would make what looks like a command of a runner.
            said = f"{where}: {message(alike)}".replace("::", ": :")
            lines = [said, *_code(alike)]
            properties = {"file": file, "line": str(line), "title": f"{first.code} {first.name}"}
            given = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
            told = _data(elide("\n".join(lines), _LONGEST))
            yield f"::{_LEVELS[first.severity]} {given}::{told}"


def _code(alike: tuple[Finding, ...]) -> list[str]:
    return [code(line) for piece in mends(alike)[:_MENDS] for line in piece.split("\n")]


def _data(text: str) -> str:
    """As the toolkit of actions escapes a message."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
