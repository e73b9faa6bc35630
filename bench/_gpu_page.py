"""What bench/gpu_accumulation.py and bench/gpu_facts.py found, as lines and as RESULTS-gpu.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench._fresh import Sample

HERE = Path(__file__).parent
PATH = HERE / "results" / "gpu_accumulation.json"
FACTS = HERE / "results" / "gpu_facts.json"
PAGE = HERE / "RESULTS-gpu.md"
KEYS = ("window", "microbatch", "side", "dtype", "way")
MOST, TIMES_NOISE = 1.3, 4
PLAIN, BIG, OURS, NOISE = "plain", "big batch", 'exact, offload="cpu"', "noise"
KINDS = ("loss", "gradients", "statistics")
AGAINST = {"error": "the big batch", "error_of_float64": "the big batch in float64"}
ASKED = f"""asked for, ResNet-50 at 224, window 1,024 in microbatches of 32:
* device memory over batch 32, at most {MOST}: not run
* loss, gradients, statistics within {TIMES_NOISE} times the big batch's own noise: not run
* the big batch under `torch.autograd.graph.save_on_cpu` beside it: not run"""
HEAD = """# Results on a GPU

Written by `python bench/gpu_accumulation.py --page` from the raw samples in `bench/results/`;
nothing here is typed by hand. Memory is the peak over the model's own; errors are those of loss,
gradients and statistics, relative, the largest of each kind. "noise" is the big batch, its samples
in five other orders. Tensor cores are off.
"""


def show(path: Path, *, write: bool, check: bool) -> None:
    """Print what is stored; write the page, or exit with 1 if it is stale."""
    if write:
        PAGE.write_text(page(path, FACTS))
    elif not check:
        tell(path)
    elif PAGE.read_text() != page(path, FACTS):
        sys.exit("bench/RESULTS-gpu.md is stale: run python bench/gpu_accumulation.py --page")


def tell(path: Path) -> None:
    """Print all samples, and what was asked for."""
    print("\n\n".join(_sections(path)))


def page(samples: Path, facts: Path) -> str:
    """The whole of RESULTS-gpu.md."""
    return "\n".join(
        [
            HEAD,
            "## Exact windows\n\n`python bench/gpu_accumulation.py`\n",
            *(f"```text\n{section}\n```\n" for section in _sections(samples)),
            "## Facts\n\n`python bench/gpu_facts.py`\n",
            _facts(facts),
        ]
    )


def _sections(path: Path) -> list[str]:
    if not path.exists():
        return [ASKED]
    found = json.loads(path.read_text())
    sections = [_machine(found)]
    for title, samples in settings(found["samples"]):
        lines = [f"  {line(sample)}" for sample in samples]
        sections.append("\n".join([title, *lines, *(f"* {said}" for said in verdicts(samples))]))
    return sections


def _machine(found: dict[str, Any]) -> str:
    gigabytes = f"{found['device_bytes'] / 2**30:.0f} GiB"
    return (
        f"{found['device']}, {gigabytes}; torch {found['torch']}, CUDA {found['cuda']}, "
        f"cuDNN {found['cudnn']}, Python {found['python']}; {found['date']}"
    )


def _facts(path: Path) -> str:
    if not path.exists():
        return "not run\n"
    found = json.loads(path.read_text())
    rows = [
        f"| {fact['what']} | {'holds' if fact['holds'] else 'DOES NOT HOLD'} | {_cell(fact)} |"
        for fact in found["facts"]
    ]
    on = f"{found['device']}, torch {found['torch']}, {found['date']}\n"
    return "\n".join([on, "| what | | seen |", "|---|---|---|", *rows, ""])


def _cell(fact: dict[str, Any]) -> str:
    return " ".join(str(fact["seen"]).replace("|", "\\|").split())


# --- exact windows -----------------------------------------------------------------------------


def settings(samples: list[Sample]) -> Iterator[tuple[str, list[Sample]]]:
    """Those of one window and dtype together, with a title."""
    for named in dict.fromkeys(tuple(s[key] for key in KEYS[:-1]) for s in samples):
        window, microbatch, side, dtype = named
        title = f"ResNet-50 at {side}, window {window:,} in microbatches of {microbatch}, {dtype}"
        yield title, [s for s in samples if tuple(s[key] for key in KEYS[:-1]) == named]


def line(sample: Sample) -> str:
    """Memory, time and errors of one way."""
    way = f"{sample['way']:<40}"
    if "failed" in sample:
        return f"{way} {sample['failed']}"
    used = f"{sample['peak'] / 1e9:7.2f} GB {sample['seconds']:7.2f} s" if "peak" in sample else ""
    errors = "; ".join(f"{AGAINST[a]}: {_errors(sample[a])}" for a in _against(sample))
    chosen = f" -> {sample['chosen']}" if "chosen" in sample else ""
    return f"{way} {used:<20} {errors}{chosen}"


def verdicts(samples: list[Sample]) -> Iterator[str]:
    """What was asked of ours, and whether it is so."""
    by_way = {sample["way"]: sample for sample in samples}
    ours, plain, noise = (by_way.get(way, {}) for way in (OURS, PLAIN, NOISE))
    if "peak" not in ours or "peak" not in plain:
        yield "device memory over that of one microbatch: not run"
    else:
        ratio = ours["peak"] / plain["peak"]
        yield f"device memory over that of one microbatch: {ratio:.2f}, at most {MOST}: " + _met(
            ratio <= MOST
        )
    for against in _against(ours) if noise else ():
        for kind in KINDS:
            error, own = ours[against][kind], noise[against][kind]
            said = f"{kind} against {AGAINST[against]}: error {error:.1e}, its own {own:.1e}"
            yield f"{said}, at most {TIMES_NOISE} times: {_met(error <= TIMES_NOISE * own)}"


def _against(sample: Sample) -> list[str]:
    return [against for against in AGAINST if against in sample]


def _errors(error: dict[str, float]) -> str:
    return " ".join(f"{error[kind]:.1e}" for kind in KINDS)


def _met(is_met: bool) -> str:
    return "met" if is_met else "missed"
