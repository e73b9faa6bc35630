"""What the samples of bench/recalibrate.py say: ratios to the evaluation pass, and the targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from bench._claims import Claim

Sample = dict[str, Any]

SETS = [(m, n) for m in ("resnet18-32", "resnet18-64", "resnet50-64") for n in (1024, 4096)]
BASE = "evaluation"
# What is read of a sample, from which kind, and the most that is asked of layerwise.
READINGS: dict[str, tuple[str, Callable[[Sample], float], float]] = {
    "time": ("time", lambda sample: sample["seconds"], 2.5),
    "peak over start": ("memory", lambda sample: sample["peak"], 1.5),
    "peak of the process": ("memory", lambda sample: sample["start"] + sample["peak"], 1.5),
}


def claims(samples: Iterable[Sample]) -> list[Claim]:
    """All targets of layerwise, set by set; of the other ways the time."""
    found: dict[tuple[str, int], dict[str, list[Sample]]] = {}
    for sample in sorted(samples, key=lambda sample: sample["round"]):
        ways = found.setdefault((sample["model"], sample["samples"]), {})
        if "error" not in sample:
            ways.setdefault(sample["way"], []).append(sample)
    return [claim for which in SETS for claim in _of_set(which, found.get(which, {}))]


def _of_set(which: tuple[str, int], ways: dict[str, list[Sample]]) -> list[Claim]:
    title = f"recalibrate, {which[0]}, {which[1]:,} samples"
    ours = [_claim(f"{title}: layerwise", ways, "layerwise", what) for what in READINGS]
    return [
        *ours,
        *(_claim(f"{title}: {way}", ways, way, "time") for way in ("merged", "update_bn")),
    ]


def _claim(title: str, ways: dict[str, list[Sample]], way: str, what: str) -> Claim:
    kind, read, most = READINGS[what]
    ours, base = ([read(s) for s in ways.get(w, []) if s["kind"] == kind] for w in (way, BASE))
    ratios = [a / b for a, b in zip(ours, base, strict=False)]
    return Claim(
        f"{title} over an evaluation pass, {what}", ratios, most if way == "layerwise" else None
    )
