"""The story as a page, for readers who have never heard of running statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from frostline.attribution import Attribution
from frostline.demo import telling
from frostline.demo.branches import Scene
from frostline.demo.digits import SOURCE
from frostline.demo.story import CONTROL, Story
from frostline.demo.ways import WAYS, Way, undoing_line
from frostline.reports import charts
from frostline.reports.page import render, trusted

NAME = "report.html"


def page(story: Story) -> str:
    """Self-contained HTML; without matplotlib the plots are left out and the page says so."""
    first = story.hard.accuracy(CONTROL)
    return render(
        "demo.html",
        {
            "story": story,
            "ways": WAYS,
            "scenes": [_scene(story.hard), _scene(story.mild)],
            "accuracy_before": first[0][0],
            "accuracy_after": first[-1][0],
            "accuracy_plot": _accuracy_plot(story),
            "layer_plot": _layer_plot(story.attribution),
            "layers": layers_in_order(story.attribution),
            "undoing": undoing_line(),
            "printed": {key: _printed(runs) for key, runs in _outputs(story).items()},
            "formula": telling.formula(story.why.formula),
            "inverted": [[1 - value for value in row] for row in story.picture],
            "sentence": " ".join(telling.sentence(story.attribution)),
            "turn": telling.your_turn().split("\n", 2)[2],
            "source": SOURCE,
        },
    )


def layers_in_order(fault: Attribution) -> list[tuple[str, float, float]]:
    """For each layer in forward order: change and points given back, its kinds taken together."""
    totals: dict[str, tuple[float, float]] = {}
    for row in fault.rows:
        change, points = totals.get(row.name, (0.0, 0.0))
        totals[row.name] = change + row.change, points + (row.points or 0.0)
    return [(name, change, points) for name, (change, points) in totals.items()]


def _scene(scene: Scene) -> dict[str, Any]:
    rows = [
        {
            "way": way,
            "accuracy": scene.accuracy(way.key),
            "second": scene.second(way.key),
            "moves": scene.first_change(way.key),
        }
        for way in scene.ways
    ]
    return {"title": scene.title, "rows": rows, "epochs": len(scene.accuracy(CONTROL)) - 1}


def _outputs(story: Story) -> dict[str, Any]:
    runs = {way.key: story.hard.runs[way.key][0].outputs for way in WAYS}
    return {**runs, "document_flag": story.document.flag, "document_freeze": story.document.freeze}


def _printed(outputs: Any) -> str:
    return "\n".join(line[2:] for line in telling.printed(outputs)[:-1])


def _accuracy_plot(story: Story) -> str | None:
    def panel(way: Way) -> charts.Panel:
        bands = [
            charts.Band(f"second branch learns on {scene.title}", scene.accuracy(way.key))
            for scene in (story.hard, story.mild)
            if way.key in scene.runs
        ]
        return charts.Panel(f"({way.letter}) {way.title}", bands)

    label = (
        "Accuracy of the main branch after each epoch, for four ways of freezing it. By flag only "
        "and with eval() once it falls on inverted digits; with eval() each epoch and with "
        "fl.freeze it is a flat line. The table below has the numbers."
    )
    small = [panel(way) for way in WAYS]
    return _drawn(lambda: charts.panels("accuracy", label, small, "epoch", "accuracy in percent"))


def _layer_plot(fault: Attribution) -> str | None:
    label = (
        "Points of accuracy that come back when the layers' state is put back one layer after the "
        "other, in the order in which they run. The table below has the numbers."
    )
    values = [(name, points) for name, _, points in layers_in_order(fault)]
    if not values:
        return None
    return _drawn(lambda: charts.bars("layers", label, values, "points of accuracy that come back"))


def _drawn(draw: Callable[[], str]) -> str | None:
    try:
        return trusted(draw())
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
