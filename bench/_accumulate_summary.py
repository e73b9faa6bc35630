"""What the samples of bench/accumulate.py say: medians, ratios, and the targets."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from typing import Any

from bench._claims import Claim

Sample = dict[str, Any]
Key = tuple[str, int, str]  # model, window, way
Samples = dict[Key, dict[str, list[Sample]]]  # by kind: "time", "memory"

MODELS = ("resnet50-64", "resnet50-128", "unet-64")
SMALL, LARGE = 16, 128
PLAIN, HOOKS, KEPT, WINDOWED = "plain", "big + hooks", "tape kept", "windowed"
FIXED = ("big batch", "big + checkpoint", HOOKS, WINDOWED)  # what `auto` chooses from


def grouped(samples: Iterable[Sample]) -> Samples:
    found: Samples = {}
    for sample in sorted(samples, key=lambda sample: sample["round"]):
        key = sample["model"], sample["window"], sample["way"]
        found.setdefault(key, {"time": [], "memory": []})[sample["kind"]].append(sample)
    return found


def seconds(kinds: dict[str, list[Sample]]) -> list[float]:
    return [sample["seconds"] for sample in kinds["time"] if "error" not in sample]


def peaks(kinds: dict[str, list[Sample]], *, gradients: bool = False) -> list[float]:
    """Bytes over the start; without ``gradients`` less those that every way leaves."""
    done = [sample for sample in kinds["memory"] if "error" not in sample]
    return [sample["peak"] - (0 if gradients else sample["gradients"]) for sample in done]


def later(kinds: dict[str, list[Sample]]) -> list[float]:
    """Bytes over the start, less the gradients, of the window after the first."""
    done = [sample for sample in kinds["memory"] if "error" not in sample]
    return [sample["other_window"]["peak"] - sample["gradients"] for sample in done]


def claims(samples: Iterable[Sample]) -> list[Claim]:
    """All targets, model by model."""
    found = grouped(samples)
    return [claim for model in MODELS for claim in _of_model(found, model)]


def _of_model(samples: Samples, model: str) -> list[Claim]:
    def of(window: int, way: str, read: Callable[..., list[float]]) -> list[float]:
        return read(samples.get((model, window, way), {"time": [], "memory": []}))

    def ratios(read: Callable[..., list[float]], a: tuple[int, str], b: tuple[int, str]) -> Any:
        return [x / y for x, y in zip(of(*a, read), of(*b, read), strict=False)]

    windowed, hooks = (LARGE, WINDOWED), (LARGE, HOOKS)
    windows = sorted({window for name, window, _ in samples if name == model})
    kept = [ratios(seconds, (window, KEPT), (window, PLAIN)) for window in windows]
    return [
        Claim(
            f"accumulate, {model}: windowed, peak at {LARGE} over {SMALL}",
            ratios(peaks, windowed, (SMALL, WINDOWED)),
            1.15,
        ),
        Claim(
            f"accumulate, {model}: windowed over {HOOKS} at {LARGE}, peak",
            ratios(peaks, windowed, hooks),
            0.35,
        ),
        Claim(
            f"accumulate, {model}: windowed over {HOOKS} at {LARGE}, time",
            ratios(seconds, windowed, hooks),
            2.0,
        ),
        Claim(f"accumulate, {model}: tape kept over plain, time, worst window", _worst(kept), 1.10),
        Claim(
            f"accumulate, {model}: auto over the fastest that fits, time, worst case",
            _worst(autos(samples, model).values()),
            1.05,
        ),
    ]


def autos(samples: Samples, model: str) -> dict[tuple[int, str], list[float]]:
    """For each window and limit: the time of `auto` over that of the fastest way that fits.

    What it may use is meant beside the gradients. Where nothing fits it is to take the smallest.
    """
    found = {}
    for (name, window, way), kinds in samples.items():
        fixed = [samples.get((model, window, other)) for other in FIXED]
        done = [other for other in fixed if other and peaks(other) and seconds(other)]
        if name != model or not way.startswith("auto, ") or not done:
            continue
        limit = int(way.split()[1]) * 10**6
        fitting = [other for other in done if _peak(other) <= limit] or [min(done, key=_peak)]
        fastest = min(map(seconds, fitting), key=statistics.median)
        found[window, way] = [a / b for a, b in zip(seconds(kinds), fastest, strict=False)]
    return found


def _peak(kinds: dict[str, list[Sample]]) -> float:
    return statistics.median(peaks(kinds))


def _worst(cases: Iterable[list[float]]) -> list[float]:
    return max((case for case in cases if case), key=statistics.median, default=[])
