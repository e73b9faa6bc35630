"""Plots as inline SVG that takes its colours and its font from the page.

matplotlib is an extra (``pip install 'frostline[report]'``) and is imported where a plot is drawn.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that no theme uses: each becomes a variable of the page, so that one plot suits both.
_INK, _MUTED, _GRID = "#010101", "#020202", "#030303"
_COLOURS = ("#0a0001", "#0a0002")
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _GRID: "var(--line)",
    _COLOURS[0]: "var(--one)",
    _COLOURS[1]: "var(--two)",
}


@dataclass(frozen=True)
class Band:
    """A line with the range around it.

    Attributes:
        name: for the legend.
        points: median, smallest and largest for each position on the x axis, from 0 on.
    """

    name: str
    points: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Panel:
    """One small plot among equals, with up to two bands."""

    title: str
    bands: Sequence[Band]


def panels(name: str, label: str, small: Sequence[Panel], x_label: str, y_label: str) -> str:
    """Up to four panels, two in a row, on common axes.

    Args:
        name: prefix of every id in the SVG, which keeps several plots on one page apart.
        label: what the plot shows, in a sentence, for those who do not see it.
        small: the panels.
        x_label: below.
        y_label: at the left.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    rows = (len(small) + 1) // 2
    with _style():
        figure = Figure(figsize=(7.4, 2.35 * rows + 0.5), layout="constrained")
        grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
        for i, (axes, panel) in enumerate(zip(grid.flat, small, strict=False)):
            _draw(axes, panel)
            axes.set_xlabel(x_label if i >= len(small) - 2 else "")
            axes.set_ylabel(y_label if i % 2 == 0 else "")
        handles, names = grid.flat[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
        return _svg(figure, name, label)


def _draw(axes: Axes, panel: Panel) -> None:
    for colour, dash, band in zip(_COLOURS, ("-", "--"), panel.bands, strict=False):
        middle, low, high = zip(*band.points, strict=True)
        x = range(len(middle))
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            x, middle, dash, color=colour, label=band.name, linewidth=2, marker="o", markersize=4
        )
        axes.set_xticks(x)
    axes.set_title(panel.title, loc="left", fontsize=10.5, fontweight="bold")


def bars(name: str, label: str, values: Sequence[tuple[str, float]], x_label: str) -> str:
    """A horizontal bar for each name, its value beside it; negative ones in the other colour.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    names, numbers = [n for n, _ in values], [v for _, v in values]
    with _style():
        figure = Figure(figsize=(7.4, 0.5 * len(values) + 0.9), layout="constrained")
        axes = figure.subplots()
        colours = [_COLOURS[0] if v >= 0 else _COLOURS[1] for v in numbers]
        drawn = axes.barh(names, numbers, color=colours, height=0.6)
        axes.bar_label(drawn, [f"{v:+.1f}" for v in numbers], padding=4, color=_INK)
        axes.axvline(0, color=_MUTED, linewidth=1)
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(x_label)
        return _svg(figure, name, label)


def _style() -> Any:
    import matplotlib as mpl

    return mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "frostline",
            "text.color": _INK,
            "axes.labelcolor": _MUTED,
            "axes.titlecolor": _INK,
            "axes.edgecolor": _GRID,
            "xtick.color": _MUTED,
            "ytick.color": _MUTED,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": _GRID,
            "grid.linewidth": 0.8,
            "axes.axisbelow": True,
            "axes.facecolor": "none",
            "figure.facecolor": "none",
            "font.family": ["DejaVu Sans"],
            "font.size": 10,
        }
    )


def _svg(figure: Figure, name: str, label: str) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    return _embedded(stream.getvalue(), name, label)


def _embedded(svg: str, name: str, label: str) -> str:
    """The drawing without what only a file of its own needs, ids prefixed, colours by variable."""
    body = svg[svg.index("<svg") :]
    inside = body[body.index(">") + 1 :]
    box = re.search(r'viewBox="([^"]+)"', body)
    inside = re.sub(r"<metadata>.*?</metadata>", "", inside, flags=re.DOTALL)
    inside = re.sub(r"<style[^>]*>.*?</style>", "", inside, flags=re.DOTALL)
    inside = re.sub(r"<!--.*?-->", "", inside, flags=re.DOTALL)
    inside = re.sub(r'\bid="', f'id="{name}-', inside)
    inside = re.sub(r'xlink:href="#', f'href="#{name}-', inside)
    inside = re.sub(r"url\(#", f"url(#{name}-", inside)
    inside = re.sub(r"font: (?:\w+ )?([\d.]+px) [^;\"]*", r"font-size: \1", inside)
    for colour, variable in _VARIABLES.items():
        inside = inside.replace(colour, variable)
    view = box.group(1) if box else "0 0 1 1"
    return f'<svg viewBox="{view}" role="img" aria-label="{_attribute(label)}">{inside}'


def _attribute(text: str) -> str:
    import html

    return html.escape(text, quote=True)
