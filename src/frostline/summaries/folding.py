"""Which rows of the tree are shown, and which of them stand together in one line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from frostline._collapsing import collapse
from frostline.summaries.result import Only, Row, Sort

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Line:
    """Equal rows together.

    Attributes:
        name: their name, or a pattern for several.
        count: how many there are.
        row: the first of them.
        parameters: elements of all.
        bytes: memory of all.
    """

    name: str
    count: int
    row: Row
    parameters: int
    bytes: int

    @property
    def type(self) -> str:
        """The class, with the count where there are several."""
        return self.row.type if self.count == 1 else f"{self.count:,} × {self.row.type}"


def lines(
    rows: Sequence[Row], depth: int | None, only: Only | None, sort: Sort | None
) -> list[Line]:
    """The lines of a table.

    Raises:
        ValueError: for an unknown switch or a depth below 0.
    """
    _check(depth, only, sort)
    shown = [row for row in _visible(rows, depth) if only is None or _is(row, only)]
    found = [_line(members) for members in _alike(shown, depth)]
    if sort == "name":
        found.sort(key=lambda line: _natural(line.row.name))
    elif sort == "parameters":
        found.sort(key=lambda line: -line.parameters)
    elif sort == "memory":
        found.sort(key=lambda line: -line.bytes)
    return found


def _check(depth: Any, only: Any, sort: Any) -> None:
    if depth is not None and (isinstance(depth, bool) or not isinstance(depth, int) or depth < 0):
        raise ValueError(f"depth={depth!r}: expected 0 or more, or None for all")
    for name, value, choices in (("only", only, get_args(Only)), ("sort", sort, get_args(Sort))):
        if value is not None and value not in choices:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(map(repr, choices))}")


def highest_leaky(rows: Iterable[Row]) -> list[Row]:
    """Leaky rows that are not below another."""
    return [row for row, above in _with_parent(rows) if row.leaky and not (above and above.leaky)]


def _with_parent(rows: Iterable[Row]) -> Iterator[tuple[Row, Row | None]]:
    above: list[Row] = []
    for row in rows:
        while above and above[-1].depth >= row.depth:
            above.pop()
        yield row, above[-1] if above else None
        above.append(row)


def _visible(rows: Iterable[Row], depth: int | None) -> Iterator[Row]:
    """Rows with tensors, down to ``depth``; deeper where that is not the whole story."""
    for row, above in _with_parent(rows):
        unclear = row.leaky or (above is not None and above.state == "mixed")
        empty = row.depth and not (row.parameters or row.buffers or row.leaky)
        if not empty and (depth is None or row.depth <= depth or unclear):
            yield row


def _is(row: Row, only: Only) -> bool:
    if only == "held":
        return row.held
    return row.leaky if only == "leaky" else row.state == only


def _alike(rows: Iterable[Row], depth: int | None) -> Iterable[list[Row]]:
    """Rows whose names differ in numbers only and that say the same of themselves."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        # What is shown for its state alone may differ in size.
        size = (row.parameters, row.bytes) if depth is None or row.depth <= depth else None
        key = (_NUMBER.sub("0", row.name), row.type, row.state, row.held, row.leaky, size)
        groups.setdefault(key, []).append(row)
    return groups.values()


def _line(members: list[Row]) -> Line:
    name = collapse(row.name for row in members)[0][0]
    return Line(
        name or "(root)",
        len(members),
        members[0],
        sum(row.parameters for row in members),
        sum(row.bytes for row in members),
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """``layer2`` before ``layer10``."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
