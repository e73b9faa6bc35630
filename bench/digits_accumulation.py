"""A run where it matters: batches of 64 digits as 32 microbatches of 2, in five ways.

    python bench/digits_accumulation.py [--seeds 5] [--epochs 8] [--json PATH]
    python bench/digits_accumulation.py --docs | --check

The real big batch is the truth. Plain, deferred, compensated and exact accumulation see the same
images in the same order, from the same start, with the same optimizer. All in float64: in float32
rounding decides ties of max pooling, and the big batch with its samples in another order parts from
itself. Nothing is timed: on one machine the same seeds give the same figures.

`--docs` writes figures and plot of docs/accumulation-digits.md from the stored results; `--check`
fails when they are others.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frostline as fl
from frostline.demo.digits import Digits, load_digits
from frostline.demo.nets import Trunk
from frostline.demo.reproducible import reproducible, seed

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench import _digits_page as page
from tests.accumulation.approximations import one_forward

RESULTS = Path(__file__).parent / "results" / "digits_accumulation.json"
TRAINING, BATCH, MICROBATCH = 1200, 64, 2
LEARNING_RATE, MOMENTUM = 0.05, 0.9
DTYPE = torch.float64

Batch = tuple[Tensor, Tensor]
Record = dict[str, Any]


# --- scenes ------------------------------------------------------------------------------------


def norms_of_images() -> nn.Module:
    """Three norms, each over all pixels of a microbatch: 128, 128 and 32 values a channel."""
    return nn.Sequential(Trunk(), nn.Linear(128, 10))


def norm_of_vectors() -> nn.Module:
    """One norm more, in the head, as projection heads have it: 2 values a channel."""
    head = [nn.Linear(128, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(Trunk(), *head)


class Scene(NamedTuple):
    """What is trained, and in which order the images of a batch come.

    Attributes:
        by_class: sort each batch, so that most microbatches hold one class.
    """

    net: Callable[[], nn.Module]
    by_class: bool


SCENES = {
    "images": Scene(norms_of_images, False),
    "by class": Scene(norms_of_images, True),
    "vectors": Scene(norm_of_vectors, False),
}


# --- ways --------------------------------------------------------------------------------------


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def big_batch(model: nn.Module, batch: Batch) -> None:
    loss_of(model, batch).backward()


def plain(model: nn.Module, batch: Batch) -> None:
    parts = _microbatches(batch)
    for part in parts:
        (loss_of(model, part) / len(parts)).backward()


def accumulated(batchnorm: str, model: nn.Module, batch: Batch) -> None:
    fl.accumulate(model, loss_of, _microbatches(batch), batchnorm=batchnorm, offload=None)


def _microbatches(batch: Batch) -> list[Batch]:
    return list(zip(*(part.split(MICROBATCH) for part in batch), strict=True))


Way = Callable[[nn.Module, Batch], None]
OURS = ("deferred", "compensated", "exact") if hasattr(fl, "accumulate") else ()
WAYS: dict[str, Way] = {
    "plain": plain,
    **{name: partial(accumulated, name) for name in OURS},
    "big batch": big_batch,
}


# --- the measurement ---------------------------------------------------------------------------


def run(scene: Scene, way: Way, number: int, epochs: int) -> Record:
    """Train from one start; loss and accuracy on the test images, in eval mode, by epoch.

    ``population_accuracy``: at the end, with the statistics of one forward of all training images
    in place of the running ones; what is lost there is lost in the weights. ``variance``: running
    variance over that of this forward, the median channel of each norm.
    """
    seed(number)
    digits = load_digits()
    digits = Digits(digits.images.to(DTYPE), digits.labels)
    order = torch.randperm(len(digits))
    training, test = digits[order[:TRAINING]], digits[order[TRAINING:]]
    model = scene.net().to(DTYPE).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    curve = [_read(model, test) for _ in _epochs(model, optimizer, scene, way, training, epochs)]
    moved = [norm.running_var.clone() for norm in _norms(model)]
    one_forward(model.train(), [training.images])
    pairs = zip(moved, _norms(model), strict=True)
    return {
        "loss": [loss for loss, _ in curve],
        "accuracy": [percent for _, percent in curve],
        "population_accuracy": _read(model, test)[1],
        "variance": [float((var / norm.running_var).median()) for var, norm in pairs],
    }


def _epochs(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scene: Scene,
    way: Way,
    training: Digits,
    epochs: int,
) -> Iterator[None]:
    for _ in range(epochs):
        model.train()
        for index in torch.randperm(len(training)).split(BATCH)[: len(training) // BATCH]:
            if scene.by_class:
                index = index[training.labels[index].argsort(stable=True)]
            optimizer.zero_grad()
            way(model, (training.images[index], training.labels[index]))
            optimizer.step()
        yield


@torch.no_grad()
def _read(model: nn.Module, test: Digits) -> tuple[float, float]:
    """Loss, and accuracy in percent."""
    scores = model.eval()(test.images)
    right = int((scores.argmax(1) == test.labels).sum())
    return float(F.cross_entropy(scores, test.labels)), 100 * right / len(test)


def _norms(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if hasattr(module, "running_var")]


def measure(seeds: int, epochs: int, told: Callable[[str], object]) -> Record:
    """All scenes and ways from all starts, as plain types for JSON."""
    scenes: Record = {key: {way: [] for way in WAYS} for key in SCENES}
    with reproducible():
        for key, scene in SCENES.items():
            for name, way in WAYS.items():
                scenes[key][name] = [run(scene, way, i, epochs) for i in range(seeds)]
                told(f"{key}, {name}: {[round(r['accuracy'][-1], 1) for r in scenes[key][name]]}")
    return {"settings": conditions(epochs), "torch": torch.__version__, "scenes": scenes}


def conditions(epochs: int) -> Record:
    """All that the figures depend on beside the code."""
    return {
        "epochs": epochs,
        "batch": BATCH,
        "microbatch": MICROBATCH,
        "learning_rate": LEARNING_RATE,
        "momentum": MOMENTUM,
        "training_images": TRAINING,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--docs", action="store_true", help="write the stored results to the docs")
    parser.add_argument("--check", action="store_true", help="fail if the docs have other figures")
    arguments = parser.parse_args()
    if arguments.check:
        if stale := page.stale(json.loads(RESULTS.read_text())):
            sys.exit(f"stale: {', '.join(stale)}; run python bench/digits_accumulation.py --docs")
        return
    if not arguments.docs:
        record = measure(arguments.seeds, arguments.epochs, print)
        arguments.json.write_text(json.dumps(record) + "\n")
        print(page.tell(record))
        return
    for path, text in page.wanted(json.loads(RESULTS.read_text())).items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main()
