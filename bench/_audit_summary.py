"""What the samples of bench/audit.py and bench/audit_memory.py say, and the targets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench._claims import Claim

Sample = dict[str, Any]

FROZEN = {"flags": "flags, half of it leaking", "held": "held", "claimed": "claimed, not frozen"}
TRAINED = {
    "all-new": "all trains, new AdamW",
    "all-lived": "all trains, AdamW that stepped",
    "head-new": "the head trains, new AdamW",
    "head-lived": "the head trains, AdamW that stepped",
}


def costs(seconds: dict[str, dict[str, list[float]]]) -> list[Claim]:
    """Seconds for 10,000 modules and 5,000 optimizer entries, by way and size."""
    return [
        Claim(
            f"audit without a batch, {FROZEN[way]}, {int(size):,} modules: s per 10,000",
            [s / int(size) * 10_000 for s in found],
            1.0,
        )
        for way, sizes in seconds.items()
        for size, found in sizes.items()
    ]


def memory(samples: Iterable[Sample]) -> list[Claim]:
    """Model, optimizer and what is added at the peak, over twice that of a training step."""
    found: dict[tuple[str, str], list[int]] = {}
    for sample in sorted(samples, key=lambda sample: sample["round"]):
        if sample["kind"] == "memory" and "error" not in sample:
            found.setdefault((sample["subject"], sample["way"]), []).append(sample["all"])
    return [
        Claim(
            f"audit with a batch, ResNet-50, {words}: memory over twice that of a training step",
            [
                ours / (2 * step)
                for ours, step in zip(
                    found.get((subject, "audit"), []),
                    found.get((subject, "two steps"), []),
                    strict=False,
                )
            ],
            1.0,
        )
        for subject, words in TRAINED.items()
    ]
