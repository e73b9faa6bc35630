"""Two branches on one trunk: the main one is frozen, the second one is trained, in four ways."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from frostline.demo.digits import Digits, load_digits
from frostline.demo.document import Outputs
from frostline.demo.nets import TwoBranches
from frostline.demo.reproducible import seed
from frostline.demo.settings import Settings
from frostline.demo.ways import BATCH, WAYS, Way, set_flags, train_second_branch

TRAINING = 1200
TRUNK_EPOCHS = 6
TRUNK_LEARNING_RATE = 3e-3

# Beside the hard case: (b) gives the bits of (a) again, and (c) those of (d).
MILD_WAYS = ("flag", "freeze")

Tick = Callable[[str], object]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Run:
    """One way from one start.

    Attributes:
        outputs: the main branch's scores for one fixed test image, before and after each epoch.
        main: its accuracy on the test images in percent, before and after each epoch.
        second: accuracy of the second branch at the end, in percent.
        training_mode: for each epoch, whether the frozen trunk was in training mode.
    """

    outputs: Outputs
    main: list[float]
    second: float
    training_mode: list[bool]

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "outputs": self.outputs.values,
            "first_change": self.outputs.first_change,
            "main_accuracy": self.main,
            "second_accuracy": self.second,
            "training_mode": self.training_mode,
        }


@dataclass(frozen=True)
class Scene:
    """Some ways from all starts, the second branch trained on one kind of images.

    Attributes:
        key: its name in JSON.
        title: what the second branch sees.
        runs: for the key of each way, a run for each seed.
    """

    key: str
    title: str
    runs: dict[str, list[Run]]

    @property
    def ways(self) -> list[Way]:
        """Those of the four ways that were run here."""
        return [way for way in WAYS if way.key in self.runs]

    def accuracy(self, way: str) -> list[tuple[float, float, float]]:
        """Median, smallest and largest accuracy of the main branch: before, after each epoch."""
        columns = zip(*(run.main for run in self.runs[way]), strict=True)
        return [_spread(column) for column in columns]

    def second(self, way: str) -> tuple[float, float, float]:
        """Median, smallest and largest accuracy of the second branch at the end."""
        return _spread(tuple(run.second for run in self.runs[way]))

    def first_change(self, way: str) -> int | None:
        """The first epoch after which any seed's output was another one; None if never."""
        epochs = [run.outputs.first_change for run in self.runs[way]]
        return min((epoch for epoch in epochs if epoch is not None), default=None)

    def always_changes(self, way: str) -> bool:
        """Whether the output changed from every start."""
        return all(run.outputs.first_change is not None for run in self.runs[way])

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "title": self.title,
            "ways": {key: [run.to_dict() for run in runs] for key, runs in self.runs.items()},
        }


@dataclass(frozen=True, eq=False)
class Witness:
    """What the flag-only run of the first seed left, for the question why.

    Attributes:
        model: the network after it.
        before: its state before the second branch was trained.
        first_batch: the first images that the second branch was trained on.
        test: the test images of the main branch.
    """

    model: TwoBranches
    before: State
    first_batch: Tensor
    test: Digits


def steps(settings: Settings) -> int:
    """How many times ``tick`` will be called by :func:`branches_story`."""
    return settings.seeds * (1 + len(WAYS) + len(MILD_WAYS))


def branches_story(settings: Settings, tick: Tick) -> tuple[Scene, Scene, Witness]:
    """Both scenes over all seeds: inverted digits, and the same digits as before.

    ``tick`` is called with a few words before each training.
    """
    hard = Scene("inverted", "inverted digits", {way.key: [] for way in WAYS})
    mild = Scene("same", "the same digits as before", {key: [] for key in MILD_WAYS})
    witness: Witness | None = None
    for number in range(settings.seeds):
        tick(f"seed {number}: trunk and main branch")
        base, training, test = trained_base(number, settings)
        for scene, data in ((hard, training.inverted()), (mild, training)):
            for way in scene.ways:
                tick(f"seed {number}: second branch on {scene.title}, ({way.letter}) {way.title}")
                model = copy.deepcopy(base)
                scene.runs[way.key].append(_run(model, way, data, test, scene is hard, settings))
                if witness is None:
                    first = torch.randperm(len(data), generator=_shuffle())[:BATCH]
                    before = copy.deepcopy(base.state_dict())
                    witness = Witness(model, before, data.images[first], test)
    if witness is None:
        raise AssertionError("settings allow at least one seed")
    return hard, mild, witness


def trained_base(number: int, settings: Settings) -> tuple[TwoBranches, Digits, Digits]:
    """Trunk and main branch trained on the digits; the training and the test images."""
    seed(number)
    digits = load_digits()
    order = torch.randperm(len(digits))
    training, test = digits[order[:TRAINING]], digits[order[TRAINING:]]
    model = TwoBranches()
    _train_main(model, training)
    set_flags(model)
    for norm in model.norms():
        norm.momentum = settings.momentum
    return model.eval(), training, test


def _train_main(model: TwoBranches, data: Digits) -> None:
    parameters = [*model.trunk.parameters(), *model.main.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=TRUNK_LEARNING_RATE)
    for _ in range(TRUNK_EPOCHS):
        for index in torch.randperm(len(data)).split(BATCH):
            loss = functional.cross_entropy(model(data.images[index]), data.labels[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _run(
    model: TwoBranches, way: Way, data: Digits, test: Digits, inverted: bool, settings: Settings
) -> Run:
    # Every way sees the same images in the same order, so that (c) and (d) can be compared in bits.
    outputs, main, modes = [_answer(model, test)], [accuracy_of(model, test)], []
    for mode in train_second_branch(model, way, data, settings.epochs, _shuffle()):
        modes.append(mode)
        outputs.append(_answer(model, test))
        main.append(accuracy_of(model, test))
    second = _parity(model, test.inverted() if inverted else test)
    return Run(Outputs(outputs), main, second, modes)


def _shuffle() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@torch.no_grad()
def _answer(model: TwoBranches, test: Digits) -> list[float]:
    scores: list[float] = model(test.images[:1])[0].tolist()
    return scores


@torch.no_grad()
def accuracy_of(model: TwoBranches, test: Digits) -> float:
    """Digits that the main branch reads rightly, in percent."""
    return _percent(model(test.images).argmax(1) == test.labels)


@torch.no_grad()
def _parity(model: TwoBranches, test: Digits) -> float:
    return _percent(model(test.images, branch="second").argmax(1) == test.labels % 2)


def _percent(right: Tensor) -> float:
    return 100 * int(right.sum()) / len(right)


def _spread(values: tuple[float, ...]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)
