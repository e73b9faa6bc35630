"""A summary as a table in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from frostline._results import plural
from frostline.summaries.folding import lines
from frostline.summaries.result import Summary
from frostline.summaries.telling import costs, memory, totals

_RIGHT = ' style="text-align:right"'


def page(found: Summary) -> str:
    """Three tables: totals, what a step adds, the tree; then what leaks, and notes.

    Names of modules come from the user's program, so everything is escaped.
    """
    head = f"Summary of {found.model}: {plural(found.modules, 'module')}"
    sums = [
        (label.strip(), f"{elements:,}", memory(size)) for label, elements, size in totals(found)
    ]
    step = [(label, memory(size), f"{how} {of}") for label, size, how, of in costs(found)]
    tree = [
        (line.name, line.type, f"{line.parameters:,}", memory(line.bytes), line.row.standing,
         "; ".join(line.row.reasons))
        for line in lines(found.rows, 2, None, None)
    ]  # fmt: skip
    return "".join(
        [
            f"<p><b>{escape(head)}</b></p>",
            _table(("", "elements", "memory"), sums, right=(1, 2)),
            _table(("a training step adds", "memory", ""), step, right=(1,)),
            _table(("module", "class", "parameters", "memory", "state", "why"), tree, right=(2, 3)),
            _list("leaky", found.leaky),
            _list("notes", found.notes),
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int]) -> str:
    style = [_RIGHT if i in right else ' style="text-align:left"' for i in range(len(head))]
    return (
        "<table><thead>"
        + _row("th", head, style)
        + "</thead><tbody>"
        + "".join(_row("td", row, style) for row in rows)
        + "</tbody></table>"
    )


def _row(tag: str, cells: Sequence[str], style: Sequence[str]) -> str:
    inner = (f"<{tag}{how}>{escape(cell)}</{tag}>" for cell, how in zip(cells, style, strict=True))
    return f"<tr>{''.join(inner)}</tr>"


def _list(title: str, entries: Sequence[str]) -> str:
    if not entries:
        return ""
    items = "".join(f"<li>{escape(entry)}</li>" for entry in entries)
    return f"<details><summary>{title}: {len(entries):,}</summary><ul>{items}</ul></details>"
