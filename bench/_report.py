"""Write bench/RESULTS.md from the raw samples in bench/results/, or check that it is up to date.

    python bench/_report.py [--check]

No figure is typed by hand: each stands in a JSON file that a script of this folder wrote.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"

HEAD = """# Results

Written by `python bench/_report.py` from the raw samples in `bench/results/`; nothing here is typed
by hand. Two shared cores, one thread: read the ratios, not the seconds. Every figure is the median
of alternated rounds in one run, quartiles in brackets. GPU: not run.

| what | command | result | target | |
|---|---|---|---|---|
"""


def main() -> None:
    page = HEAD + "".join(f"| {' | '.join(row)} |\n" for row in rows())
    if "--check" not in sys.argv:
        PAGE.write_text(page)
    elif PAGE.read_text() != page:
        sys.exit("bench/RESULTS.md is stale: run python bench/_report.py")


def rows() -> list[list[str]]:
    checksum, digest, freeze = (_read(name) for name in ("checksum", "digest", "freeze"))
    speeds = checksum["bytes_per_second"]
    seconds = freeze["seconds"]
    return [
        _ratio("seal: checksum over a plain read of memory", "checksum", speeds, "read", 0.5),
        _ratio("seal: checksum over a copy of memory", "checksum", speeds, "copy", None),
        _digest(digest),
        _cost("freeze 10,000 modules, each", seconds["freeze_10000"], 1e6, "us", 20),
        _cost(
            "freeze the module tree of a ResNet-50, each", seconds["freeze_resnet50"], 1e6, "us", 20
        ),
        _cost("call of a held empty module, more than unheld", seconds["call"], 1e6, "us", 0.2),
        _cost("import frostline, more than import torch", seconds["import"], 1e3, "ms", 30),
    ]


def _read(name: str) -> dict[str, Any]:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def _ratio(
    what: str, way: str, samples: dict[str, list[float]], base: str, target: float | None
) -> list[str]:
    ratios = [a / b for a, b in zip(samples[way], samples[base], strict=True)]
    return _row(what, "checksum.py", ratios, "", target, at_least=True)


def _digest(result: dict[str, Any]) -> list[str]:
    seconds = zip(result["blake3_seconds"], result["manifest_seconds"], strict=True)
    ratios = [blake3 / ours for blake3, ours in seconds]
    what = (
        f"BLAKE3 manifest of {result['bytes'] / 2**30:.0f} GiB over blake3 on the same bytes, speed"
    )
    return _row(what, "digest.py", ratios, "", 0.8, at_least=True)


def _cost(what: str, pairs: list[list[float]], scale: float, unit: str, target: float) -> list[str]:
    more = [(ours - theirs) * scale for ours, theirs in pairs]
    return _row(what, "freeze.py", more, f" {unit}", target, at_least=False)


def _row(
    what: str, script: str, values: list[float], unit: str, target: float | None, at_least: bool
) -> list[str]:
    low, middle, high = statistics.quantiles(values, n=4)
    if target is None:
        asked, verdict = "", ""
    else:
        met = middle >= target if at_least else middle <= target
        asked = f"{'at least' if at_least else 'at most'} {target:g}{unit}"
        verdict = "met" if met else "missed"
    result = f"{middle:.3g}{unit} [{low:.3g}, {high:.3g}]"
    return [what, f"`python bench/{script}`", result, asked, verdict]


if __name__ == "__main__":
    main()
