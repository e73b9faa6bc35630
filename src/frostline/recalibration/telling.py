"""How a recalibration reads at 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

from frostline._collapsing import collapse
from frostline._results import WIDTH, elide, plural
from frostline.recalibration.result import Recalibrated, Recalibration, Spread, batches

_ROWS = 20  # more norms than that: those that moved most
_FIGURE = 7


def text(result: Recalibration) -> str:
    """All of it."""
    return "\n".join([*_head(result), "", *_table(result), *_left(result), *_end()])


def _head(result: Recalibration) -> Iterator[str]:
    yield (
        f"Recalibration  {elide(result.model, 30)}: {plural(len(result.rows), 'norm')}, "
        f"{result.method}"
    )
    yield f"  {plural(result.samples, 'sample')} in {batches(result.batches)}, as {result.called}"
    if result.waiting is not None:
        yield f"  waiting at a norm, the batches took {result.waiting}"
    yield _filled(result.definition)


def _table(result: Recalibration) -> Iterator[str]:
    shown = _most_moved(result.rows)
    width = min(max(len("norm"), *(len(row.name) for row in shown)), WIDTH - 52)
    group = 3 * _FIGURE + 2
    yield f"  {'':<{width}}  {'mean moved by':>{group}}  {'variance, new / old':>{group}}"
    heads = "".join(f"{head:>{_FIGURE}} " for head in ("min", "median", "max"))[:-1]
    yield f"  {'norm':<{width}}  {heads}  {heads}"
    for row in shown:
        name = elide(row.name or "(the model)", width)
        yield f"  {name:<{width}}  {_figures(row.moved)}  {_figures(row.ratio)}"
    if len(shown) < len(result.rows):
        yield f"  and {len(result.rows) - len(shown):,} that moved less: see .rows"
    yield "  mean moved by: in standard deviations of the channel"


def _most_moved(rows: tuple[Recalibrated, ...]) -> list[Recalibrated]:
    """In the order in which they run."""
    if len(rows) <= _ROWS:
        return list(rows)
    most = sorted(rows, key=lambda row: row.moved.most, reverse=True)[:_ROWS]
    names = {row.name for row in most}
    return [row for row in rows if row.name in names]


def _figures(spread: Spread) -> str:
    return " ".join(f"{_figure(value):>{_FIGURE}}" for value in spread)


def _figure(value: float) -> str:
    """Three digits in seven characters."""
    small = f"{value:.3g}"
    return small if len(small) <= _FIGURE else f"{value:.0e}"


def _left(result: Recalibration) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for name, why in result.left.items():
        reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        yield _filled(f"left as they were, {why}: {', '.join(p for p, _ in collapse(names))}")


def _end() -> Iterator[str]:
    yield "  the old statistics: .old, and .undo() brings them back"


def _filled(words: str) -> str:
    return fill(words, WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
