"""Does holding the old running statistics starve a new branch that works on another domain?

    python bench/two_domains.py [--json PATH] [--seeds 5] [--epochs 15]
    python bench/two_domains.py --docs | --check

Trunk and first branch learn the digits as they are, and are frozen; the second branch learns odd
from even on a second domain, with the trunk's BatchNorm statistics treated in three ways. Networks
and training are those of `frostline demo`. Accuracy only, nothing is timed: on one machine the same
seeds give the same figures.

`--docs` fills the figures of docs/two-domains.md in from bench/results/two_domains.json; `--check`
fails when they differ.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import frostline as fl
from frostline.demo import branches, ways
from frostline.demo.digits import Digits
from frostline.demo.nets import Trunk, TwoBranches
from frostline.demo.reproducible import reproducible
from frostline.demo.settings import Settings

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "two_domains.json"
PAGE = HERE.parent / "docs" / "two-domains.md"
OPENING, CLOSING = "<!-- figures: python bench/two_domains.py --docs -->\n", "<!-- end -->"

EPOCHS = 15  # three, as in the demo, leave the second branch half trained on a far domain
CONTRAST, BRIGHTNESS, NOISE = 0.3, 0.5, 0.1
ONE_POINT = 1.0

Shift = Callable[[Digits, torch.Generator], Digits]
Record = dict[str, Any]


def faded(digits: Digits, noise: torch.Generator) -> Digits:
    """Weak contrast on grey, with noise."""
    images = digits.images
    grain = NOISE * torch.randn(images.shape, generator=noise)
    return Digits(CONTRAST * images + BRIGHTNESS + grain, digits.labels)


DOMAINS: dict[str, tuple[str, Shift]] = {
    "same": ("the same digits (control)", lambda digits, _: digits),
    "inverted": ("inverted, `1 - x`", lambda digits, _: digits.inverted()),
    "faded": (f"faded, `{CONTRAST} x + {BRIGHTNESS}` + noise {NOISE}", faded),
}


# --- three ways, read out in four ----------------------------------------------------------


def _held(model: TwoBranches) -> None:
    fl.freeze(model.trunk)


def _batch(model: TwoBranches) -> None:
    fl.freeze(model.trunk, stats="batch")


def _own(model: TwoBranches) -> None:
    weights = {id(parameter): parameter for parameter in model.trunk.parameters()}
    own = copy.deepcopy(model.trunk, weights)  # shares the weights; the statistics are new tensors
    fl.freeze(model.trunk)
    fl.freeze(own, stats="update")
    model.trunk = own


def _nothing(model: TwoBranches) -> None:
    pass


HELD = ways.Way("held", "a", "held", "fl.freeze(trunk)", _held, _nothing)
BATCH = ways.Way("batch", "b", "batch", 'fl.freeze(trunk, stats="batch")', _batch, _nothing)
OWN = ways.Way("own", "c", "own", 'fl.freeze(copy, stats="update")', _own, _nothing)


@torch.no_grad()
def running(model: TwoBranches, test: Digits) -> float:
    """Accuracy in percent, normalised with running statistics."""
    return _percent(model(test.images, branch="second"), test)


@torch.no_grad()
def batchwise(model: TwoBranches, test: Digits) -> float:
    """Accuracy in percent, normalised with test batches of the size of those in training."""
    model.trunk.train()
    scores = [model(images, branch="second") for images in test.images.split(ways.BATCH)]
    model.trunk.eval()
    return _percent(torch.cat(scores), test)


def _percent(scores: Tensor, test: Digits) -> float:
    return 100 * int((scores.argmax(1) == test.labels % 2).sum()) / len(test)


Reading = Callable[[TwoBranches, Digits], float]

# What to train with -> column of the table -> what to test with.
READINGS: tuple[tuple[ways.Way, dict[str, Reading]], ...] = (
    (HELD, {"held": running}),
    (BATCH, {"batch, batch": batchwise, "batch, held": running}),
    (OWN, {"own": running}),
)
COLUMNS = [column for _, readings in READINGS for column in readings]


# --- the measurement -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Run:
    """A second branch, trained.

    Attributes:
        model: the network; its trunk is the one that the second branch was trained on.
        original: the trunk of the first branch: the same object, or, with ``own``, another.
        accuracy: of the second branch in percent, for each column, after each epoch of `marks`.
    """

    model: TwoBranches
    original: Trunk
    accuracy: dict[str, list[float]]


def marks(epochs: int) -> list[int]:
    """The epochs after which accuracy is read: a third, two thirds, all; at least the last."""
    return sorted({epochs // 3, 2 * epochs // 3, epochs} - {0})


def second_branch(
    base: TwoBranches,
    way: ways.Way,
    readings: dict[str, Reading],
    first: Tensor,
    data: tuple[Digits, Digits],
    epochs: int,
) -> Run:
    """Train it on the second domain, ``data``: for training and for the test.

    Raises:
        AssertionError: an output of the first branch for the images ``first`` has other bits.
    """
    model = copy.deepcopy(base)
    original, training, test = model.trunk, *data
    before = _bits(model.main, original, first)
    accuracy: dict[str, list[float]] = {column: [] for column in readings}
    shuffle = torch.Generator().manual_seed(0)
    trained = ways.train_second_branch(model, way, training, epochs, shuffle)
    for epoch, _ in enumerate(trained, start=1):
        if epoch in marks(epochs):
            for column, read in readings.items():
                accuracy[column].append(read(model, test))
    if not torch.equal(before, _bits(model.main, original, first)):
        raise AssertionError(f"{way.key}: the first branch gives other outputs on its own domain")
    return Run(model, original, accuracy)


@torch.no_grad()
def _bits(head: nn.Module, trunk: nn.Module, images: Tensor) -> Tensor:
    bits: Tensor = head(trunk(images)).view(torch.int32)
    return bits


def measure(settings: Settings) -> Record:
    """All domains and ways from all starts, as plain types for JSON."""
    domains: Record = {
        key: {"first_branch": [], "accuracy": {column: [] for column in COLUMNS}} for key in DOMAINS
    }
    with reproducible():
        for number in range(settings.seeds):
            base, training, test = branches.trained_base(number, settings)
            for key, (_, shift) in DOMAINS.items():
                noise = torch.Generator().manual_seed(number)
                data = shift(training, noise), shift(test, noise)
                domains[key]["first_branch"].append(branches.accuracy_of(base, data[1]))
                for way, readings in READINGS:
                    run = second_branch(base, way, readings, test.images, data, settings.epochs)
                    for column, percents in run.accuracy.items():
                        domains[key]["accuracy"][column].append(percents)
    return {
        "settings": conditions(settings),
        "torch": torch.__version__,
        "after_epochs": marks(settings.epochs),
        "domains": domains,
    }


def conditions(settings: Settings) -> Record:
    """All that the figures depend on beside the code."""
    return {
        **settings.to_dict(),
        "batch": ways.BATCH,
        "learning_rate": ways.LEARNING_RATE,
        "training_images": branches.TRAINING,
        "trunk_epochs": branches.TRUNK_EPOCHS,
        "faded": [CONTRAST, BRIGHTNESS, NOISE],
    }


# --- telling -------------------------------------------------------------------------------


def tell(record: Record) -> str:
    """Tables and what they say, as Markdown."""
    domains = {key: record["domains"][key] for key in DOMAINS}
    gains = {key: _gains(domain["accuracy"]) for key, domain in domains.items()}
    accuracy = [_accuracy_row(key, domain) for key, domain in domains.items()]
    over_time = [[DOMAINS[key][0], *(_spread(gain, "+") for gain in gains[key])] for key in gains]
    return "\n".join(
        [
            _table(["second domain", "first branch there", *COLUMNS], accuracy),
            _table(["own - held, after epoch", *map(str, record["after_epochs"])], over_time),
            _verdict({key: gain[-1] for key, gain in gains.items()}),
        ]
    )


def _accuracy_row(key: str, domain: Record) -> list[str]:
    last = ([percents[-1] for percents in domain["accuracy"][column]] for column in COLUMNS)
    return [DOMAINS[key][0], _spread(domain["first_branch"]), *map(_spread, last)]


def _gains(accuracy: Record) -> list[list[float]]:
    """What own statistics bring over held ones: at each mark, for each seed."""
    pairs = zip(accuracy["own"], accuracy["held"], strict=True)
    seeds = [[own - held for own, held in zip(*pair, strict=True)] for pair in pairs]
    return [list(mark) for mark in zip(*seeds, strict=True)]


def _spread(values: list[float], sign: str = "") -> str:
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{sign}.1f} [{low:{sign}.1f}, {high:{sign}.1f}]"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _verdict(gains: dict[str, list[float]]) -> str:
    won = {key: gain for key, gain in gains.items() if statistics.median(gain) > ONE_POINT}
    if not won:
        return "Own statistics win by more than one point nowhere.\n"
    said = [f"{key} digits ({_spread(gain, '+')} points)" for key, gain in won.items()]
    return f"Own statistics win by more than one point on: {', '.join(said)}.\n"


def filled(page: str, record: Record) -> str:
    """The page with the figures of the record between its two marks."""
    head, rest = page.split(OPENING)
    _, tail = rest.split(CLOSING)
    return f"{head}{OPENING}\n{tell(record)}\n{CLOSING}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the raw results there")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--docs", action="store_true", help="fill the stored figures into the page")
    parser.add_argument("--check", action="store_true", help="fail if the page has other figures")
    arguments = parser.parse_args()
    if arguments.docs or arguments.check:
        _docs(arguments.check)
        return
    record = measure(Settings(seeds=arguments.seeds, epochs=arguments.epochs))
    print(tell(record))
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


def _docs(check: bool) -> None:
    page = PAGE.read_text()
    new = filled(page, json.loads(RESULTS.read_text()))
    if not check:
        PAGE.write_text(new)
    elif page != new:
        sys.exit("docs/two-domains.md is stale: run python bench/two_domains.py --docs")


if __name__ == "__main__":
    main()
