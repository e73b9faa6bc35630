"""The network of the document, with the flag alone and with the hold."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from frostline.demo.digits import load_digits
from frostline.demo.nets import DocumentNet
from frostline.demo.reproducible import seed
from frostline.demo.settings import Settings
from frostline.errors import FrostlineWarning
from frostline.freezing import freeze

Hold = Literal["flag", "freeze"]
BATCH = 64
TRAINING = 640


@dataclass(frozen=True)
class Outputs:
    """What a network answered to one fixed input, before and after each epoch.

    Attributes:
        values: one list of scores for each time, the first from before the first epoch.
    """

    values: list[list[float]]

    @property
    def first_change(self) -> int | None:
        """The first epoch after which the answer was another one, in any bit; None if never."""
        start = torch.tensor(self.values[0])
        moved = (not torch.equal(torch.tensor(row), start) for row in self.values)
        return next((epoch for epoch, changed in enumerate(moved) if changed), None)


@dataclass(frozen=True)
class DocumentStory:
    """The document's network both ways, from the same start on the same images."""

    flag: Outputs
    freeze: Outputs
    frozen_parameters: int

    @property
    def ok(self) -> bool:
        """Whether the control drifted and the hold held."""
        return self.flag.first_change is not None and self.freeze.first_change is None

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "frozen_parameters": self.frozen_parameters,
            "flag": {"outputs": self.flag.values, "first_change": self.flag.first_change},
            "freeze": {"outputs": self.freeze.values, "first_change": self.freeze.first_change},
        }


def document_story(settings: Settings) -> DocumentStory:
    """Run the document's loop with the flag alone, then with :func:`freeze`."""
    flag, frozen = _run("flag", settings), _run("freeze", settings)
    count = sum(1 for _ in DocumentNet().parameters())
    return DocumentStory(flag, frozen, count)


def _run(hold: Hold, settings: Settings) -> Outputs:
    seed(0)
    model = DocumentNet(momentum=settings.momentum)
    model.requires_grad_(False)
    if hold == "freeze":
        with warnings.catch_warnings():
            # The document's network is fresh on purpose; its norms were never trained.
            warnings.simplefilter("ignore", FrostlineWarning)
            freeze(model)
    return Outputs(_loop(model, *_images(), settings.epochs))


def _loop(model: nn.Module, training: Tensor, test: Tensor, epochs: int) -> list[list[float]]:
    """The document's loop: train(), look at data, eval(), look at the same test input."""
    outputs = [_answer(model, test)]
    for _ in range(epochs):
        model.train()
        for images in training.split(BATCH):
            model(images)
        outputs.append(_answer(model, test))
    return outputs


def _answer(model: nn.Module, test: Tensor) -> list[float]:
    model.eval()
    with torch.no_grad():
        answer: list[float] = model(test)[0].tolist()
    return answer


def _images() -> tuple[Tensor, Tensor]:
    """Digits at the document's 32 by 32, shuffled; one of them is the test input."""
    images = load_digits().images
    images = images[torch.randperm(len(images))]
    large = functional.interpolate(images, scale_factor=4, mode="nearest")
    return large[1 : 1 + TRAINING], large[:1]
