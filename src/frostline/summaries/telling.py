"""How a summary reads at 80 columns: totals, what a step will cost, the tree, what leaks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from textwrap import fill

from frostline._collapsing import collapse
from frostline._results import WIDTH, elide, plural
from frostline.freezing.printing import human
from frostline.summaries.folding import Line, highest_leaky, lines
from frostline.summaries.result import Only, Sort, Summary

MOST_LINES = 30  # of the tree, where nobody asked for one
_MOST_LEAKS = 5
_CLASS = 22
_MEND = "to hold what can be held: fl.freeze(model, fl.FLAGGED)"
_HEAD = ("module", "class", "parameters", "memory", "state")


def text(
    found: Summary, depth: int | None, only: Only | None, sort: Sort | None, most: int | None
) -> str:
    """The whole summary, with at most so many lines of the tree."""
    head = f"Summary of {elide(found.model, 40)}: {plural(found.modules, 'module')}"
    shown = lines(found.rows, depth, only, sort)
    tree = _table(shown[:most])
    if most is not None and len(shown) > most:
        tree += f"\n  and {len(shown) - most:,} lines more: see .table() and .rows"
    parts = [head, "", *_totals(found), "", *_step(found), "", tree]
    parts += _section(
        "leaky: frozen to the eye, and changed by the next training step", _leaks(found)
    )
    parts += _section("notes", found.notes)
    return "\n".join(parts)


def table(found: Summary, depth: int | None, only: Only | None, sort: Sort | None) -> str:
    """The tree alone."""
    return _table(lines(found.rows, depth, only, sort))


def memory(nbytes: int | None) -> str:
    """Bytes with three digits and a decimal prefix; a word where they are not known.

    Example:
        >>> memory(1_500), memory(950), memory(None)
        ('1.5 kB', '950 B', 'unknown')
    """
    return "unknown" if nbytes is None else f"{human(nbytes)}B"


def _totals(found: Summary) -> Iterator[str]:
    yield f"  {'':<14}  {'elements':>15}  {'memory':>9}"
    for label, elements, nbytes in totals(found):
        yield f"  {label:<14}  {elements:>15,}  {memory(nbytes):>9}"


def totals(found: Summary) -> list[tuple[str, int, int]]:
    """Label, elements and bytes of each kind of tensor."""
    return [
        ("parameters", found.parameters, found.parameter_bytes),
        ("  trainable", found.trainable, found.trainable_bytes),
        ("  frozen", found.frozen, found.frozen_bytes),
        ("buffers", found.buffers, found.buffer_bytes),
        ("together", found.parameters + found.buffers, found.bytes),
    ]


def _step(found: Summary) -> Iterator[str]:
    yield "  a training step adds"
    for label, nbytes, how, of in costs(found):
        yield f"  {label:<33}  {memory(nbytes):>9}  {how}".rstrip()
        if of:
            yield f"    {of}"


def costs(found: Summary) -> Iterator[tuple[str, int | None, str, str]]:
    """Label, bytes, how they are known, and of what, for each thing that a step needs."""
    yield "gradients", found.gradient_bytes, "", ""
    if found.optimizer is not None:
        label = f"state of {elide(found.optimizer, 24)}"
        yield label, found.optimizer_bytes, found.optimizer_how, ""
    for name, nbytes in found.optimizer_estimates.items():
        yield f"state, if it is {name}", nbytes, "predicted", ""
    how = {"predicted": "predicted", "measured": "measured by a run"}
    words = how.get(found.activation_how or "", "pass batch= to predict them")
    of = f"of {found.activation_of}" if found.activation_of else ""
    yield "saved activations", found.activation_bytes, words, of


def _table(shown: Sequence[Line]) -> str:
    if not shown:
        return "  no module is like that"
    rows = [
        (line.name, elide(line.type, _CLASS), f"{line.parameters:,}", memory(line.bytes),
         line.row.standing)
        for line in shown
    ]  # fmt: skip
    widths = [max(map(len, column)) for column in zip(_HEAD, *rows, strict=True)]
    widths[0] = min(widths[0], WIDTH - 2 - sum(width + 2 for width in widths[1:]))
    return "\n".join(_row(row, widths) for row in (_HEAD, *rows))


def _row(row: Sequence[str], widths: Sequence[int]) -> str:
    name, kind, parameters, size, state = row
    cells = [
        elide(name, widths[0]).ljust(widths[0]),
        kind.ljust(widths[1]),
        parameters.rjust(widths[2]),
        size.rjust(widths[3]),
        state,
    ]
    return "  " + "  ".join(cells).rstrip()


def _leaks(found: Summary) -> list[str]:
    """The highest leaky modules, those with equal reasons together; then what to do."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for row in highest_leaky(found.rows):
        alike.setdefault(row.reasons, []).append(row.name or "(root)")
    entries = [
        f"{elide(pattern, 40)}: {'; '.join(reasons)}"
        for reasons, names in alike.items()
        for pattern, _ in collapse(names)
    ]
    hidden = len(entries) - _MOST_LEAKS
    if hidden > 0:
        entries[_MOST_LEAKS:] = [f"and {hidden:,} more: see .table(only='leaky') and .leaky"]
    return [*entries, _MEND] if entries else []


def _section(title: str, entries: Iterable[str]) -> list[str]:
    paragraphs = [
        fill(
            entry, WIDTH, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
        )
        for entry in entries
    ]
    return ["", f"  {title}", *paragraphs] if paragraphs else []
