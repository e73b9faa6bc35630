"""What freezing costs: the freeze itself, a call of a held module, the import.

    python bench/freeze.py [--json PATH] [--pairs 7]

Each row compares two sides in alternation, so that a machine that slows down slows both; the
median of the pairs is shown with its quartiles, and the raw samples go to the JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import frostline as fl

Samples = list[tuple[float, float]]


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def alternated(ours: Callable[[], float], theirs: Callable[[], float], pairs: int) -> Samples:
    """Pairs of seconds; every other pair runs the other way round."""
    found = []
    for i in range(pairs):
        if i % 2:
            baseline = theirs()
            found.append((ours(), baseline))
        else:
            found.append((ours(), theirs()))
    return found


# --- (a) the freeze ----------------------------------------------------------------------


def many_layers(count: int = 10_000) -> nn.Module:
    quarter = (nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout)
    layers = [make(2, 2) if make is nn.Linear else _small(make) for make in quarter * (count // 4)]
    return _lived(nn.Sequential(*layers))


def _small(make: type[nn.Module]) -> nn.Module:
    return make(2) if make is nn.BatchNorm1d else make()


def bottlenecks() -> nn.Module:
    """The module tree of a ResNet-50: 16 blocks of three convolutions and norms."""
    blocks = []
    for _ in range(16):
        layers = [(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()) for _ in range(3)]
        blocks.append(nn.Sequential(*(layer for three in layers for layer in three)))
    return _lived(nn.Sequential(*blocks))


def _lived(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.num_batches_tracked.fill_(5)
    return model


def by_flags(model: nn.Module) -> None:
    """What people write today; it holds less."""
    model.requires_grad_(False)
    model.eval()


def freezing(make: Callable[[], nn.Module], pairs: int) -> Samples:
    """Seconds a module: `freeze` of the structure alone, and flags with `eval()`."""
    model = make()
    count = len(list(model.modules()))

    def ours() -> float:
        model.requires_grad_(True).train()
        start = time.perf_counter()
        part = fl.freeze(model, seal=False)
        took = time.perf_counter() - start
        part.undo()
        return took / count

    def theirs() -> float:
        model.requires_grad_(True).train()
        return seconds(lambda: by_flags(model)) / count

    return alternated(ours, theirs, pairs)


# --- (b) a call --------------------------------------------------------------------------


class Empty(nn.Module):
    """Reads `training`, as held modules do, and nothing else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.training  # noqa: B018
        return x


def calls(pairs: int, count: int = 100_000) -> Samples:
    """Seconds a call of an empty module, held and plain."""
    x, held, plain = torch.zeros(()), Empty(), Empty().eval()
    part = fl.freeze(held)
    held(x)

    def run(module: nn.Module) -> float:
        def loop() -> None:
            for _ in range(count):
                module(x)

        return seconds(loop) / count

    samples = alternated(lambda: run(held), lambda: run(plain), pairs)
    part.undo()
    return samples


# --- (c) the import ----------------------------------------------------------------------


def imports(pairs: int) -> Samples:
    """Seconds in a fresh process: torch and frostline, and of these torch alone."""
    code = (
        "import time; t = time.perf_counter(); import torch; torch_at = time.perf_counter() - t; "
        "import frostline; print(time.perf_counter() - t, torch_at)"
    )

    # As users have it: byte code is kept, whatever the shell says that runs this.
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def run() -> tuple[float, float]:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=kept
        )
        done.check_returncode()
        both, alone = map(float, done.stdout.split())
        return both, alone

    run()  # byte code and disk cache
    return [run() for _ in range(pairs)]


# --- telling -----------------------------------------------------------------------------


def row(name: str, samples: Samples, unit: float, target: float, suffix: str) -> str:
    differences = [(ours - theirs) / unit for ours, theirs in samples]
    ratios = [ours / theirs for ours, theirs in samples]
    low, middle, high = statistics.quantiles(differences, n=4)
    verdict = "met" if middle <= target else "MISSED"
    return (
        f"{name:<34} {middle:9.3f} {suffix} [{low:.3f}, {high:.3f}]  "
        f"ratio {statistics.median(ratios):7.2f}  target {target} {verdict}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the raw samples there")
    parser.add_argument("--pairs", type=int, default=9, help="alternated pairs, at least 7")
    arguments = parser.parse_args()
    if arguments.pairs < 7:
        parser.error("--pairs must be at least 7")
    torch.set_num_threads(1)
    measured = {
        "freeze_10000": freezing(many_layers, arguments.pairs),
        "freeze_resnet50": freezing(bottlenecks, arguments.pairs),
        "call": calls(arguments.pairs),
        "import": imports(arguments.pairs),
    }
    print("ours minus baseline: median [quartiles] of alternated pairs")
    print(row("freeze, 10,000 modules, per module", measured["freeze_10000"], 1e-6, 20, "us"))
    print(row("freeze, tree of a ResNet-50, each", measured["freeze_resnet50"], 1e-6, 20, "us"))
    print(row("call of a held empty module", measured["call"], 1e-6, 0.2, "us"))
    print(row("import, over import torch", measured["import"], 1e-3, 30, "ms"))
    if arguments.json:
        record = {"torch": torch.__version__, "seconds": measured}
        arguments.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
