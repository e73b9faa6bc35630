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

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import _accumulate_summary, _audit_summary, _recalibrate_summary
from bench._claims import Claim

HERE = Path(__file__).parent
PAGE = HERE / "RESULTS.md"

HEAD = """# Results

Written by `python bench/_report.py` from the raw samples in `bench/results/`; nothing here is typed
by hand. Two shared cores, one thread: read the ratios, not the seconds. Every figure is the median
of alternated rounds in one run, quartiles in brackets. "One round" was measured once, partly beside
other work, as each sample says. On a GPU: [RESULTS-gpu.md](RESULTS-gpu.md).

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
        *_guard(_read("guard")),
        *map(_accumulated, _accumulate_summary.claims(_samples("accumulate"))),
        *map(_recalibrated, _recalibrate_summary.claims(_samples("recalibrate"))),
        *(_claimed(claim, "audit.py") for claim in _audit_summary.costs(_read("audit")["seconds"])),
        *(
            _claimed(claim, "audit_memory.py")
            for claim in _audit_summary.memory(_samples("audit_memory"))
        ),
    ]


def _accumulated(claim: Claim) -> list[str]:
    return _claimed(claim, "accumulate.py")


def _recalibrated(claim: Claim) -> list[str]:
    return _claimed(claim, "recalibrate.py")


def _claimed(claim: Claim, script: str) -> list[str]:
    asked = "" if claim.most is None else f"at most {claim.most:g}"
    command = f"`python bench/{script}`"
    if not claim.ratios:
        return [claim.what, command, "not run", asked, ""]
    if len(claim.ratios) == 1:
        found = f"{claim.ratios[0]:.2f}, one round"
        return [claim.what, command, found, asked, claim.verdict]
    return _row(claim.what, script, claim.ratios, "", claim.most, at_least=False)


def _samples(name: str) -> list[dict[str, Any]]:
    """Of one of the programs that take an hour; none before they have run."""
    there = (HERE / "results" / f"{name}.json").exists()
    return _read(name)["samples"] if there else []


def _guard(result: dict[str, Any]) -> list[list[str]]:
    """Cost and latency of the guard, always as a pair."""
    found = []
    for name, work in result["workloads"].items():
        step = statistics.median(work["step_seconds"]["none"])
        size = f"{work['bytes'] / 1e6:.3g} MB frozen, step {1e3 * step:.3g} ms"
        for way in ("pages", "content"):
            own, late = work["own"][way], work["latency"][way]
            cost = [1e6 * s for s in own["late"]]
            target = max(0.01 * step, 50e-6) * 1e6 if way == "content" else _pages_target(name)
            title = f"guard, {way}, {name} ({size}): a look"
            found.append(
                _row(title, "guard.py", cost, " us", target and round(target), at_least=False)
            )
            found.append(_latency(name, way, late))
        first = [1e6 * s for s in work["own"]["pages"]["early"]]
        found.append(
            _row(
                f"guard, pages, {name}: the first looks",
                "guard.py",
                first,
                " us",
                _pages_target(name),
                False,
            )
        )
        ways = ("pages", "content", "expert: XXH3 of all")
        found += [_overhead(name, way, work["step_seconds"]) for way in ways]
    works = result["workloads"].values()
    control = [n for work in works for n in work["latency"]["content, overhead=0"]["steps"]]
    seen = sum(n is not None for n in control)
    said = f"{seen} of {len(control)} seen"
    command = "`python bench/guard.py`"
    verdict = "fails, as it must" if not seen else "MUST FAIL"
    return [
        *found,
        ["control: content with `overhead=0`, flipped bits", command, said, "none", verdict],
    ]


def _pages_target(name: str) -> float | None:
    return 200.0 if name.startswith("1 GB") else None


def _latency(name: str, way: str, found: dict[str, Any]) -> list[str]:
    late, bound = found["steps"], 1 if way == "pages" else found["announced"] + 1
    seen = [n for n in late if n is not None]
    missed = len(late) - len(seen)
    result = f"median {statistics.median(seen):g}, worst {max(seen)} of {len(late)} flipped bits"
    met = not missed and max(seen) <= bound
    what = f"guard, {way}, {name}: steps until it is reported"
    verdict = "met" if met else f"missed ({missed} never)"
    return [what, "`python bench/guard.py`", result, f"at most {bound}, announced", verdict]


def _overhead(name: str, way: str, seconds: dict[str, list[float]]) -> list[str]:
    more = [100 * (a / b - 1) for a, b in zip(seconds[way], seconds["none"], strict=True)]
    return _row(
        f"{way}, {name}: a whole step, more than unguarded", "guard.py", more, " %", None, False
    )


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
