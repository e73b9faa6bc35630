"""What a measured audit takes, beside two real training steps: peak memory and time.

    python bench/audit_memory.py [--subjects ..] [--kinds ..] [--rounds 3] [--again] [--busy]
    python bench/audit_memory.py --tell

A ResNet-50 with AdamW on 16 images of 64 x 64, all of it trainable or the head alone; the optimizer
is new, or has stepped before. Every sample is a process of its own, ways in alternation; what is in
bench/results/audit_memory.json is not measured again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

import frostline as fl

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench._fresh import KINDS, Kept, Sample, measured, refuse_if_busy, taken
from tests import _torchvision, zoo

SUBJECTS = ("all-new", "all-lived", "head-new", "head-lived")
IMAGES, SIDE = 16, 64
KEPT = Kept(
    Path(__file__).parent / "results" / "audit_memory.json",
    ("subject", "way", "kind", "round"),
    {"torch": torch.__version__, "images": IMAGES, "side": SIDE},
)

Batch = tuple[Tensor, Tensor]


def compute_loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def two_steps(model: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
    for _ in range(2):
        optimizer.zero_grad()
        compute_loss(model, batch).backward()
        optimizer.step()


def audit(model: nn.Module, optimizer: Optimizer, batch: Batch) -> None:
    """In eval mode, so that the step after ``train()`` is another one and is measured, too."""
    model.eval()
    fl.audit(model, frozen="layer1", optimizer=optimizer, batch=batch, compute_loss=compute_loss)


WAYS: dict[str, Callable[[nn.Module, Optimizer, Batch], None]] = {
    "two steps": two_steps,
    "audit": audit,
}


def built(subject: str) -> tuple[nn.Module, Optimizer, Batch]:
    _torchvision.install()
    import timm

    torch.manual_seed(0)
    what, age = subject.split("-")
    model = zoo.live(timm.create_model("resnet50", num_classes=10)).train()
    if what == "head":
        model.requires_grad_(False)
        model.fc.requires_grad_(True)
    draw = torch.Generator().manual_seed(1)
    batch = torch.randn(IMAGES, 3, SIDE, SIDE, generator=draw), torch.arange(IMAGES) % 10
    optimizer = torch.optim.AdamW(model.parameters())
    if age == "lived":
        two_steps(model, optimizer, batch)
    compute_loss(model, (batch[0][:2], batch[1][:2]))  # what is made once a process
    optimizer.zero_grad()
    return model, optimizer, batch


def child(wanted: Sample) -> Sample:
    """One sample, here."""
    torch.set_num_threads(1)
    given = built(wanted["subject"])
    there = _there(*given[:2])
    found = measured(lambda: WAYS[wanted["way"]](*given))[1]
    return {**found, "all": there + found["peak"], "threads": torch.get_num_threads()}


def _there(model: nn.Module, optimizer: Optimizer) -> int:
    """Bytes of the model and of the optimizer's state before the start."""
    states = (t for kept in optimizer.state.values() for t in kept.values())
    tensors = [*model.parameters(), *model.buffers(), *filter(torch.is_tensor, states)]
    return sum(tensor.nbytes for tensor in tensors)


# --- all of them -----------------------------------------------------------------------------


def wanted(arguments: argparse.Namespace) -> Iterator[Sample]:
    for number, subject in itertools.product(range(arguments.rounds), arguments.subjects):
        ways = list(WAYS)
        random.Random(f"{number} {subject}").shuffle(ways)
        for way, kind in itertools.product(ways, arguments.kinds):
            yield {"subject": subject, "way": way, "kind": kind, "round": number}


def run(arguments: argparse.Namespace) -> None:
    for want in wanted(arguments):
        if arguments.again or not KEPT.has(want):
            refuse_if_busy(arguments.busy)
            sample = taken(Path(__file__), want)
            KEPT.add(sample)
            print(line(sample), flush=True)


def line(sample: Sample) -> str:
    what = " ".join(str(sample[key]) for key in ("round", "subject", "way", "kind"))
    if "error" in sample:
        return f"{what}: {sample['error']}"
    return f"{what}: {sample['seconds']:.2f} s, {sample['peak'] / 1e6:.0f} MB over the start"


def of(subject: str, way: str, kind: str, key: str) -> list[Any]:
    asked = {"subject": subject, "way": way, "kind": kind}
    return [
        sample[key]
        for sample in KEPT.read()
        if all(sample[name] == value for name, value in asked.items()) and "error" not in sample
    ]


def tell() -> None:
    print("\naudit over two steps, medians of the rounds; a peak with what was there before")
    for subject, (kind, key) in itertools.product(
        SUBJECTS, (("memory", "all"), ("time", "seconds"))
    ):
        ours, theirs = (of(subject, way, kind, key) for way in ("audit", "two steps"))
        if ours and theirs:
            a, b = statistics.median(ours), statistics.median(theirs)
            print(f"{subject:12} {kind:8} {a / b:.2f}  {a:.3g} over {b:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=[*SUBJECTS])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
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
