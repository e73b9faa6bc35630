"""The results as Markdown: what stands between the markers of docs/peers-accumulation.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.peers import accumulation, pages
from tests.peers.accumulation import Figures, Record

PAGE = pages.ROOT / "docs" / "peers-accumulation.md"
NOISE, CONSTANTS, PLAIN = "big batch, permuted", "window statistics as constants", "plain"
TRUTH = "big batch"
WORST = (
    "Of the worst channel: the mean in standard deviations, then the variance as a share of the "
    "true one."
)

Show = Callable[[Figures], str]


def wanted() -> dict[Path, str]:
    """What the page has to be."""
    return {PAGE: pages.between(PAGE.read_text(), told(accumulation.read()))}


def stale() -> list[str]:
    """The page, if it does not show what is stored."""
    return [path.name for path, text in wanted().items() if path.read_text() != text]


def told(record: Record) -> str:
    libraries = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    parts = [
        f"Computed with {libraries}, in float64: a window of {accumulation.WINDOW} samples.",
        "## Gradients\n\n|g − g\\*| / |g\\*| over all parameters together, g\\* being the big "
        "batch's.",
        _accumulated(record, _number("gradient"), without=TRUTH),
        _constants(record),
        "## Loss\n\nRelative distance from the big batch's.",
        _accumulated(record, _number("loss"), without=TRUTH),
        f"## Running statistics after the window\n\n{WORST}",
        _accumulated(record, _statistics, without=TRUTH),
        "## Time\n\nOver plain accumulation, of small models in float64: not what large ones take, "
        "which `bench/RESULTS.md` has.",
        _accumulated(record, _ratio(record, "seconds"), without=NOISE),
        "## Memory\n\nMost bytes in tensors, gradients included, over plain accumulation.",
        _accumulated(record, _ratio(record, "peak"), without=NOISE),
        "## Running statistics recomputed\n\nA set of 66 samples, of which the last two are far "
        f"from the others, in four splits. The truth is one training forward of all 66. {WORST}",
        _recalibrated(record),
    ]
    return "\n\n".join(parts)


def _accumulated(record: Record, show: Show, *, without: str) -> str:
    """A row for each way, a column for each model and number of microbatches."""
    cases = [(model, k) for model, counts in record["accumulation"].items() for k in counts]
    head = ["", *(f"{model}, K = {k}" for model, k in cases)]
    rows = [
        [way, *(show(record["accumulation"][model][k][way]) for model, k in cases)]
        for way in accumulation.WAYS
        if way != without
    ]
    return _table(head, rows)


def _recalibrated(record: Record) -> str:
    models = list(record["recalibration"])
    rows = [
        [split, tool, *(_statistics(record["recalibration"][m][split][tool]) for m in models)]
        for split in accumulation.SPLITS
        for tool in accumulation.TOOLS
    ]
    return _table(["batches", "", *models], rows)


def _statistics(of: Figures) -> str:
    return f"{_shown(of['mean'])}, {_shown(of['variance'])}"


def _number(key: str) -> Show:
    return lambda of: _shown(of[key])


def _shown(value: float) -> str:
    """Two digits; one of what is rounding."""
    if value == 0:
        return "0"
    return f"{value:.2g}" if value >= 1e-4 else f"{value:.0e}"


def _ratio(record: Record, key: str) -> Show:
    plain = {
        id(ways[way]): ways[PLAIN][key]
        for counts in record["accumulation"].values()
        for ways in counts.values()
        for way in ways
    }
    return lambda of: f"{of[key] / plain[id(of)]:.2f}"


def _constants(record: Record) -> str:
    """Where the obvious recipe is worse than doing nothing, and where it is not."""
    worse, better = [], []
    for model, counts in record["accumulation"].items():
        for k, ways in counts.items():
            is_worse = ways[CONSTANTS]["gradient"] > ways[PLAIN]["gradient"]
            (worse if is_worse else better).append(f"{model} at K = {k}")
    return (
        f"Window statistics as constants are further off than plain accumulation on: "
        f"{', '.join(worse) or 'none'}; less far on: {', '.join(better) or 'none'}. Their loss and "
        "their statistics are exact nevertheless, so neither shows that the gradients are wrong."
    )


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
