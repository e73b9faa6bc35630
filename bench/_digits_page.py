"""The page about the digits: figures and plot from bench/results/digits_accumulation.json."""

from __future__ import annotations

import io
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DOCS = Path(__file__).parents[1] / "docs"
PAGE, PLOT = DOCS / "accumulation-digits.md", DOCS / "figures" / "accumulation-digits.svg"
OPENING, CLOSING = "<!-- figures: python bench/digits_accumulation.py --docs -->\n", "<!-- end -->"
TRUTH = "big batch"
ONE_POINT = 1.0

TITLES = {
    "images": "norms of images",
    "by class": "norms of images, microbatches by class",
    "vectors": "a norm of vectors in the head",
}
STYLES = {
    "plain": ("#c44e52", "-"),
    "deferred": ("#dd8452", "--"),
    "compensated": ("#937860", ":"),
    "exact": ("#4c72b0", "-"),
    TRUTH: ("#000000", ":"),
}

Record = dict[str, Any]
Runs = list[Record]


def wanted(record: Record) -> dict[Path, str]:
    """The files, as they have to be."""
    head, rest = PAGE.read_text().split(OPENING)
    _, tail = rest.split(CLOSING)
    return {PAGE: f"{head}{OPENING}\n{tell(record)}\n{CLOSING}{tail}", PLOT: plot(record)}


def stale(record: Record) -> list[str]:
    return [
        path.name
        for path, text in wanted(record).items()
        if not path.exists() or path.read_text() != text
    ]


# --- in words ----------------------------------------------------------------------------------


def tell(record: Record) -> str:
    """Tables and what they say, as Markdown."""
    scenes = record["scenes"]
    heads = ["", "accuracy, %", "loss", "accuracy, population statistics", "running variance"]
    parts = []
    for key, ways in scenes.items():
        rows = [_row(name, runs) for name, runs in ways.items()]
        parts.append(f"## {TITLES[key].capitalize()}\n\n{_table(heads, rows)}")
    return "\n".join([*parts, *(_verdict(key, ways) for key, ways in scenes.items())])


def _row(name: str, runs: Runs) -> list[str]:
    return [
        name,
        _spread([run["accuracy"][-1] for run in runs], ".1f"),
        _spread([run["loss"][-1] for run in runs], ".3f"),
        _spread([run["population_accuracy"] for run in runs], ".1f"),
        ", ".join(f"{statistics.median(x):.2f}" for x in zip(*(r["variance"] for r in runs))),  # noqa: B905
    ]


def _spread(values: list[float], form: str) -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} [{low:{form}}, {high:{form}}]"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _verdict(key: str, ways: dict[str, Runs]) -> str:
    """How accuracy and loss after the last epoch differ from the big batch's, seed by seed."""
    points, losses = [], []
    for name, runs in ways.items():
        if name == TRUTH:
            continue
        pairs = list(zip(runs, ways[TRUTH], strict=True))
        gained = [ours["accuracy"][-1] - truth["accuracy"][-1] for ours, truth in pairs]
        differs = " (differs)" if abs(statistics.median(gained)) > ONE_POINT else ""
        points.append(f"{name} {_spread(gained, '+.1f')}{differs}")
        ratios = [ours["loss"][-1] / truth["loss"][-1] for ours, truth in pairs]
        losses.append(f"{name} {_spread(ratios, '.2f')}")
    title = TITLES[key].capitalize()
    none = "" if any("differs" in said for said in points) else " None differs by a point."
    return (
        f"*{title}*. Points of accuracy over the big batch: {', '.join(points)}.{none} Loss as a "
        f"multiple of the big batch's: {', '.join(losses)}.\n"
    )


# --- as a plot ---------------------------------------------------------------------------------


def plot(record: Record) -> str:
    """Loss and accuracy by epoch, median and range over the seeds, as SVG."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    scenes, stream = record["scenes"], io.StringIO()
    style = {"svg.fonttype": "none", "svg.hashsalt": "frostline", "font.size": 10}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8.2, 2.6 * len(scenes) + 0.4), layout="constrained")
        grid = figure.subplots(len(scenes), 2, sharex=True, squeeze=False)
        for (left, right), (key, ways) in zip(grid, scenes.items(), strict=True):
            _draw(left, ways, "loss")
            left.set_yscale("log")
            _draw(right, ways, "accuracy")
            left.set_title(TITLES[key], loc="left", fontsize=10.5, fontweight="bold")
        for axes, label in zip(grid[0], ("test loss", "accuracy, %"), strict=True):
            axes.set_title(label, loc="right", fontsize=10)
        for axes in grid[-1]:
            axes.set_xlabel("epoch")
        handles, names = grid[0][0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False)
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(stream, metadata=nothing)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def _draw(axes: Axes, ways: dict[str, Runs], what: str) -> None:
    for name, runs in ways.items():
        colour, dash = STYLES[name]
        columns = list(zip(*(run[what] for run in runs), strict=True))
        epochs = range(1, len(columns) + 1)
        middle = [statistics.median(column) for column in columns]
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.12, linewidth=0)
        axes.plot(epochs, middle, dash, color=colour, label=name, linewidth=2)
    axes.grid(color="#dddddd", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
