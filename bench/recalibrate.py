"""What `fl.recalibrate` costs, beside one evaluation pass over the same set: time and peak memory.

    python bench/recalibrate.py [--models ..] [--samples 1024 4096] [--rounds 3] [--again] [--busy]
    python bench/recalibrate.py --tell

The set is in memory before the start, in batches of 64. Every sample is a process of its own, ways
in alternation; what is in bench/results/recalibrate.json is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import frostline as fl

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import _recalibrate_summary as summary
from bench._fresh import KINDS, Kept, Sample, measured, refuse_if_busy, taken
from tests import _torchvision, zoo

BATCH = 64
SIZES = (1024, 4096)
MODELS = {"resnet18-32": ("resnet18", 32), "resnet18-64": ("resnet18", 64)}
MODELS |= {"resnet50-64": ("resnet50", 64)}
KEPT = Kept(
    Path(__file__).parent / "results" / "recalibrate.json",
    ("model", "samples", "way", "kind", "round"),
    {"torch": torch.__version__, "batch": BATCH},
)

Way = Callable[[nn.Module, list[Tensor]], Any]


@torch.no_grad()
def evaluation(model: nn.Module, batches: list[Tensor]) -> None:
    """The pass over the set that everyone makes anyway."""
    model.eval()
    for batch in batches:
        model(batch)


def _ours(method: str) -> Way:
    def way(model: nn.Module, batches: list[Tensor]) -> Any:
        return fl.recalibrate(model, batches, method=method, samples=None)

    return way


WAYS: dict[str, Way] = {
    "evaluation": evaluation,
    "update_bn": lambda model, batches: update_bn(batches, model),
}
if hasattr(fl, "recalibrate"):
    WAYS |= {"merged": _ours("merged"), "layerwise": _ours("layerwise")}


def built(name: str) -> nn.Module:
    _torchvision.install()
    import timm

    torch.manual_seed(0)
    return zoo.live(timm.create_model(MODELS[name][0], num_classes=10)).train()


def child(wanted: Sample) -> Sample:
    """One sample, here; a first batch has gone through before."""
    torch.set_num_threads(1)
    model, side = built(wanted["model"]), MODELS[wanted["model"]][1]
    draw = torch.Generator().manual_seed(1)
    images = torch.randn(wanted["samples"], 3, side, side, generator=draw) * 1.5 + 0.4
    batches, way = list(images.split(BATCH)), WAYS[wanted["way"]]
    way(model, batches[:2])
    return {**measured(lambda: way(model, batches))[1], "threads": torch.get_num_threads()}


# --- all of them -----------------------------------------------------------------------------


def wanted(arguments: argparse.Namespace) -> Iterator[Sample]:
    for number in range(arguments.rounds):
        for name, count in itertools.product(arguments.models, arguments.samples):
            chosen = [way for way in WAYS if not arguments.ways or way in arguments.ways]
            random.Random(f"{number} {name} {count}").shuffle(chosen)
            for way, kind in itertools.product(chosen, KINDS):
                yield {"model": name, "samples": count, "way": way, "kind": kind, "round": number}


def run(arguments: argparse.Namespace) -> None:
    for want in wanted(arguments):
        if arguments.again or not KEPT.has(want):
            refuse_if_busy(arguments.busy)
            sample = taken(Path(__file__), want)
            KEPT.add(sample)
            print(line(sample), flush=True)


def line(sample: Sample) -> str:
    what = " ".join(str(sample[key]) for key in ("round", "model", "samples", "way", "kind"))
    if "error" in sample:
        return f"{what}: {sample['error']}"
    return f"{what}: {sample['seconds']:.2f} s, {sample['peak'] / 1e6:.0f} MB over the start"


def tell() -> None:
    print("\nmedian of the rounds over the evaluation pass, and the most that is asked for")
    print(*summary.claims(KEPT.read()), sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--samples", nargs="+", type=int, default=SIZES)
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
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        print(json.dumps(child(json.loads(sys.argv[1]))))
    else:
        main()
