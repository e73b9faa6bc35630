"""What an audit costs without a batch, in models of 10,000 to 100,000 modules.

    python bench/audit.py [--modules 10000 30000 100000] [--rounds 7] [--json PATH]

Each model has one optimizer entry for two modules. Three ways to freeze it: by flags alone, with
all norms leaking and gradients from before; held; and claimed without a flag. The sizes of a way
alternate within a round, so that a machine that slows down slows all of them; shown is the median
of the rounds with its quartiles, per 10,000 modules.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import frostline as fl

TARGET = 1.0  # seconds per 10,000 modules and 5,000 optimizer entries
Given = dict[str, Any]


def layers(count: int) -> nn.Module:
    """Blocks of a norm, dropout and a linear layer in a container: 4 modules, 4 parameters."""
    blocks = [_block() for _ in range(count // 4)]
    return nn.Sequential(*blocks).train()


def _block() -> nn.Module:
    norm = nn.BatchNorm1d(2)
    norm.num_batches_tracked.fill_(5)
    norm.running_var.fill_(2.0)
    return nn.Sequential(norm, nn.Dropout(0.1), nn.Linear(2, 2))


def _half(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())[::2]


def by_flags(count: int) -> Given:
    """Every norm leaks, and what the optimizer has of it has a gradient from before."""
    model = layers(count)
    optimizer = torch.optim.AdamW(_half(model), weight_decay=0.1)
    for block in model:
        block[0].requires_grad_(False)
        block[0].weight.grad = torch.ones(2)
    return {"model": model, "optimizer": optimizer}


def held(count: int) -> Given:
    """Half of it is frozen, and nothing leaks."""
    model = layers(count)
    optimizer = torch.optim.AdamW(_half(model), weight_decay=0.1)
    for block in model:
        block[0].requires_grad_(False)
    fl.freeze(model, fl.FLAGGED, seal=False)
    return {"model": model, "optimizer": optimizer}


def claimed(count: int) -> Given:
    """All of it is said to be frozen, and nothing is."""
    model = layers(count)
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(_half(model), weight_decay=0.1),
        "frozen": nn.Module,
    }


WAYS: dict[str, Callable[[int], Given]] = {"flags": by_flags, "held": held, "claimed": claimed}


def measure(way: Callable[[int], Given], sizes: list[int], rounds: int) -> dict[str, list[float]]:
    """Seconds of an audit, by number of modules."""
    made = {size: way(size) for size in sizes}
    samples: dict[str, list[float]] = {str(size): [] for size in sizes}
    for number in range(rounds + 1):
        for size, given in made.items():
            start = time.perf_counter()
            fl.audit(**given)
            if number:  # the first round loads and looks up
                samples[str(size)].append(time.perf_counter() - start)
    return samples


def row(name: str, size: str, seconds: list[float]) -> str:
    """One line: the cost of 10,000 modules in a model of this size."""
    each = [s / int(size) * 10_000 for s in seconds]
    low, middle, high = statistics.quantiles(each, n=4)
    verdict = "met" if middle <= TARGET else "MISSED"
    return (
        f"{name:<8} {int(size):>7,} modules  {middle:6.3f} s per 10,000 [{low:.3f}, {high:.3f}]"
        f"  target {TARGET:g} {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--max-load", type=float, default=1.0, help="refuse above this load")
    parser.add_argument("--json", type=Path, help="write the raw samples here")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    if load > options.max_load:
        raise SystemExit(f"load is {load:.1f}, more than {options.max_load}: measure when quiet")
    torch.set_num_threads(1)
    found = {name: measure(way, options.modules, options.rounds) for name, way in WAYS.items()}
    for name, samples in found.items():
        for size, seconds in samples.items():
            print(row(name, size, seconds))
    if options.json:
        record = {"load": load, "torch": torch.__version__, "seconds": found}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
