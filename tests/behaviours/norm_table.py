"""Write docs/explaining/norms.md from what is said of every setting, which test_norms.py checks.

`python tests/behaviours/norm_table.py` writes the page.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from torch import nn

from frostline.behaviours import Doing, behaviour
from tests.behaviours.norm_cases import (
    MOMENTA,
    PER_SAMPLE,
    TRACKING,
    Case,
    per_sample_cases,
    tracking_cases,
)

PAGE = Path(__file__).parents[2] / "docs" / "explaining" / "norms.md"

INTRO = """\
---
orphan: true
---
<!-- Written by `python tests/behaviours/norm_table.py`; do not edit. -->

# What every norm does in every setting

This is what `fl.explain` says of torch's normalisation layers. A test runs each of {cases:,}
settings: layer, `affine`, `track_running_stats`, `momentum` (None, 0, 0.1, 1), mode,
`requires_grad`, hold, batches of 1, 2 and 8 samples with one position and with several. It compares
the output (1e-12, float64), the set of tensors that changed (bits), their new values (1e-12) and
whether torch raises. What is missing in a table makes no difference: `affine` and `requires_grad`
decide nothing of this, which is the point of this library.

*But for rounding*: InstanceNorm averages over a copy of its statistics for each sample. With
momentum 0 or None that is what they were, exactly with 1, 2 or 4 samples; with 3 some bits move.

`mean` and `var` normalise with N in the denominator, `running_var` takes N - 1. A write is one
forward; `k = num_batches_tracked + 1`.

"""

SITUATIONS = {
    (True, None): "training",
    (False, None): "eval",
    (True, "hold"): 'any, `stats="hold"`',
    (True, "batch"): 'training, `stats="batch"`',
    (True, "update"): 'training, `stats="update"`',
}
FAMILIES = {
    "BatchNorm1d, 2d, 3d and SyncBatchNorm": ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d",
                                              "SyncBatchNorm"],
    "InstanceNorm1d, 2d, 3d": ["InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"],
}  # fmt: skip


def said(case: Case) -> Doing:
    net, part = case.build()
    found = behaviour(net.norm)
    assert found is not None
    assert part is None or part.ok
    return found.now


def outcome(doing: Doing) -> tuple[str, str, str]:
    """What it normalises with, what it writes, what it refuses: without what affine adds."""
    writes = "<br>".join(f"`{write}`" for write in doing.writes) or "nothing"
    refuses = f"one value per {doing.needs_two}" if doing.needs_two else ""
    return str(doing.statistics), writes, refuses


def single(outcomes: Iterable[tuple[str, str, str]]) -> tuple[str, str, str]:
    """The one outcome that all share: nothing else makes a difference."""
    found = set(outcomes)
    assert len(found) == 1, found
    return found.pop()


def tracking_rows(layers: Iterable[str]) -> Iterator[str]:
    cases = [case for layer in layers for case in tracking_cases(getattr(nn, layer))]
    known: dict[tuple[bool, str, object], list[tuple[str, str, str]]] = {}
    for case in cases:
        situation = SITUATIONS.get((case.training, case.hold))
        if situation is not None:
            known.setdefault((bool(case.track), situation, case.momentum), []).append(
                outcome(said(case))
            )
    for track in (True, False):
        for situation in SITUATIONS.values():
            each = {m: single(known[track, situation, m]) for m in MOMENTA}
            for result in dict.fromkeys(each.values()):
                momenta = [f"{m}" for m, other in each.items() if other == result]
                shown = "any" if len(momenta) == len(MOMENTA) else ", ".join(momenta)
                yield f"| {track} | {situation} | {shown} | " + " | ".join(result) + " |"


def per_sample_rows() -> Iterator[str]:
    for layer in PER_SAMPLE:
        statistics, writes, refuses = single(
            outcome(said(case)) for case in per_sample_cases(layer)
        )
        yield f"| {layer} | each sample itself ({statistics}) | {writes} | yes | {refuses} |"


def page() -> str:
    count = sum(len(list(tracking_cases(layer))) for layer in TRACKING)
    count += sum(len(list(per_sample_cases(layer))) for layer in PER_SAMPLE)
    parts = [INTRO.format(cases=count)]
    for title, layers in FAMILIES.items():
        parts.append(
            f"## {title}\n\n"
            "| track_running_stats | mode | momentum | normalises with | writes | raises with |\n"
            "|---|---|---|---|---|---|\n" + "\n".join(tracking_rows(layers)) + "\n\n"
        )
    parts.append(
        "## Beside them: no buffers, nothing to hold\n\n"
        "| layer | normalises with | writes | the same in both modes | raises with |\n"
        "|---|---|---|---|---|\n" + "\n".join(per_sample_rows()) + "\n"
    )
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
