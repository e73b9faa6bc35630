"""By how much frozen tensors moved, as the plots of an audit's page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from frostline.reports.showing import shown

_BARS = 12  # rows that stand open
_ROWS = 300  # rows in all
_DOTS = 2000
_KINDS = 3  # colours; the last is for all others
_HEIGHT, _MARGIN = 210, 12  # of the plot over the model, in pixels of CSS
_COUNTER = "num_batches_tracked"


def plot(drift: Mapping[str, float | str]) -> dict[str, Any]:
    """Two views: every tensor in the order of the model, and rows with the largest first.

    Args:
        drift: largest absolute difference by full name; what is not finite is text.
    """
    moved = [(n, _number(v)) for n, v in drift.items() if n.rpartition(".")[2] != _COUNTER]
    place, ticks = _axis([value for _, value in moved])
    largest = sorted(moved, key=lambda pair: -pair[1])
    kinds = Counter(shown(name.rpartition(".")[2], 40) for name, _ in moved)
    common = [kind for kind, _ in kinds.most_common(_KINDS if len(kinds) <= _KINDS else _KINDS - 1)]
    return {
        "counters": len(drift) - len(moved),
        "bars": _BARS,
        "left": max(0, len(moved) - _ROWS),
        "ticks": ticks,
        "kinds": common if len(kinds) <= _KINDS else [*common, "others"],
        "dots": _dots(moved, common, place),
        "rows": [{"name": shown(n), "by": _told(v), "at": place(v)} for n, v in largest[:_ROWS]],
    }


def high(percent: float) -> float:
    """Where a place on the axis is in the plot over the model, in pixels from its top."""
    return round(_HEIGHT - _MARGIN - percent / 100 * (_HEIGHT - 2 * _MARGIN), 1)


def _dots(
    moved: list[tuple[str, float]], common: list[str], place: Callable[[float], float]
) -> list[dict[str, Any]]:
    smallest = sorted((value for _, value in moved), reverse=True)[:_DOTS][-1:] or [0.0]
    last = max(1, len(moved) - 1)
    dots: list[dict[str, Any]] = []
    for i, (name, value) in enumerate(moved):
        kind = shown(name.rpartition(".")[2], 40)
        if value >= smallest[0] and len(dots) < _DOTS:
            dots.append(
                {"name": shown(name), "by": _told(value), "at": place(value),
                 "x": round(100 * i / last, 2),
                 "kind": common.index(kind) if kind in common else len(common)}
            )  # fmt: skip
    return dots


def _axis(
    values: list[float],
) -> tuple[Callable[[float], float], list[tuple[str, float]]]:
    """A logarithmic axis: from a value to percent, and its ticks at powers of ten."""
    finite = [value for value in values if 0 < value < math.inf]
    low = math.floor(math.log10(min(finite))) if finite else -1
    high = max(math.ceil(math.log10(max(finite))) if finite else 0, low + 1)

    def place(value: float) -> float:
        if value <= 0 or value == math.inf:
            return 100.0 if value > 0 else 0.0
        return round(100 * (math.log10(value) - low) / (high - low), 2)

    powers = range(low, high + 1, math.ceil((high - low) / 5))
    # Read as text: the powers at the ends of float64 overflow or vanish when computed.
    return place, [(_tick(power), place(float(f"1e{power}"))) for power in powers]


def _tick(power: int) -> str:
    return f"1e{power}" if abs(power) > 2 else f"{10.0**power:g}"


def _told(value: float) -> str:
    return "not finite" if value == math.inf else f"{value:.3g}"


def _number(value: float | str) -> float:
    """A size to sort by: infinite for all that is not finite."""
    number = float(value)
    return number if math.isfinite(number) else math.inf
