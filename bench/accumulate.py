"""What exact accumulation costs, beside what torch has: time and peak memory of a window.

    python bench/accumulate.py [--models ..] [--windows ..] [--ways ..] [--rounds 3] [--again]
    python bench/accumulate.py --tell

Every sample is a process of its own, ways in alternation; samples are added to
bench/results/accumulate.json as they come and a sample that is there is not taken again, so the
program can be stopped at any time. Peaks are less the gradients, which every way leaves.

Ways: plain accumulation (not exact); the real big batch; with `torch.utils.checkpoint` in each
block; with what it saves for backward on disk; then ours, by `offload`: None (tape kept), "disk"
(windowed), and "auto" under several values of `memory`. Microbatches of four.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import _accumulate_summary as summary
from bench._accumulate_models import SUBJECTS
from bench._accumulate_ways import MICROBATCH, ways
from bench._fresh import KINDS, Kept, Sample, refuse_if_busy, taken

HERE = Path(__file__).parent
CHILD = HERE / "_accumulate_child.py"
KEPT = Kept(
    HERE / "results" / "accumulate.json",
    ("model", "window", "way", "kind", "round"),
    {"torch": torch.__version__, "microbatch": MICROBATCH},
)
WINDOWS = (16, 64, 128)
COLUMNS = "over start, less gradients, the same of the next window"


def wanted(arguments: argparse.Namespace) -> Iterator[Sample]:
    """Round by round, so that a program that is stopped has few rounds of everything."""
    for number in range(arguments.rounds):
        for name, window in itertools.product(arguments.models, arguments.windows):
            chosen = [w for w in ways(SUBJECTS[name]) if not arguments.ways or w in arguments.ways]
            random.Random(f"{number} {name} {window}").shuffle(chosen)
            for way, kind in itertools.product(chosen, KINDS):
                yield {"model": name, "window": window, "way": way, "kind": kind, "round": number}


def run(arguments: argparse.Namespace) -> None:
    for want in wanted(arguments):
        if arguments.again or not KEPT.has(want):
            refuse_if_busy(arguments.busy)
            sample = taken(CHILD, want)
            KEPT.add(sample)
            print(line(sample), flush=True)


def line(sample: Sample) -> str:
    what = " ".join(str(sample[key]) for key in ("round", "model", "window", "way", "kind"))
    if "error" in sample:
        return f"{what}: {sample['error']}"
    peak = (sample["peak"] - sample["gradients"]) / 1e6
    return f"{what}: {sample['seconds']:.2f} s, {peak:.0f} MB, loss {sample['loss']:.6f}"


# --- telling ---------------------------------------------------------------------------------


def tell() -> None:
    samples = summary.grouped(KEPT.read())
    for model, window in dict.fromkeys((model, window) for model, window, _ in samples):
        print(f"\n{model}, window {window}: seconds [least, most]; MB {COLUMNS}")
        for (name, size, way), kinds in samples.items():
            if (name, size) == (model, window):
                print(f"  {way:<18} {_row(kinds)}")
    print("\nmedian of the rounds, and the most that is asked for")
    print(*summary.claims(KEPT.read()), sep="\n")


def _row(kinds: dict[str, list[Sample]]) -> str:
    errors = [s["error"] for both in kinds.values() for s in both if "error" in s]
    took = summary.seconds(kinds)
    used = [summary.peaks(kinds, gradients=True), summary.peaks(kinds), summary.later(kinds)]
    if errors or not took or not all(used):
        return errors[0][:100] if errors else "incomplete"
    spread = f"{statistics.median(took):7.2f} [{min(took):.2f}, {max(took):.2f}]"
    columns = "".join(f"{statistics.median(values) / 1e6:7.0f}" for values in used)
    said = [line for s in kinds["time"] for text in s["said"] for line in text.splitlines()]
    chosen = "; ".join(dict.fromkeys(line for line in said if line.startswith("->")))
    return f"{spread:<24}{columns}  loss {kinds['time'][0]['loss']:.6f}  {chosen}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=[*SUBJECTS])
    parser.add_argument("--windows", nargs="+", type=int, default=WINDOWS)
    parser.add_argument("--ways", nargs="+", help="all by default")
    parser.add_argument("--rounds", type=int, default=3, help="at least 3 for figures to be kept")
    parser.add_argument("--again", action="store_true", help="take samples again that are there")
    parser.add_argument("--busy", action="store_true", help="measure although others compute")
    parser.add_argument("--tell", action="store_true", help="measure nothing, show what is stored")
    arguments = parser.parse_args()
    if not arguments.tell:
        run(arguments)
    tell()


if __name__ == "__main__":
    main()
