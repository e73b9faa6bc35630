"""Real models with a life behind them.

A fresh BatchNorm (mean 0, variance 1, gamma 1, counter 0) hides nearly every error that this
project is about. Every model here has random statistics, affine parameters of both signs and
counters that ran, and has been trained for two steps, the same on every build.

    model = ZOO["resnet18"].build()
    loss = ZOO["resnet18"].loss(model, ZOO["resnet18"].batch())
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import zoo_models as models

Batch = Any
CLASSES = models.CLASSES


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Fix the global generators inside, leave them as they were outside."""
    # transformers draws SpecAugment masks from numpy's global generator.
    numpy_state = np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)


def live(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give `model`, in place, statistics and affine parameters such as a past would leave."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            _live_statistics(module, draw)
            _live_affine(module, draw)
    return model


def _live_statistics(module: nn.Module, draw: torch.Generator) -> None:
    if isinstance(getattr(module, "running_mean", None), Tensor):
        module.running_mean.normal_(0.0, 0.3, generator=draw)
        module.running_var.uniform_(0.3, 3.0, generator=draw)
    if isinstance(getattr(module, "num_batches_tracked", None), Tensor):
        module.num_batches_tracked.random_(3, 50, generator=draw)


def _live_affine(module: nn.Module, draw: torch.Generator) -> None:
    """Fill what initialisation left constant: scales, shifts, class tokens, position biases."""
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.numel() < 2 or parameter.min() != parameter.max():
            continue
        # Some scales start at 0 (the last norm of a residual block), so the value tells nothing.
        if parameter.dim() == 1 and not name.endswith("bias"):
            signs = torch.empty_like(parameter).bernoulli_(0.7, generator=draw) * 2 - 1
            signs[:2] = torch.tensor([1.0, -1.0])
            parameter.uniform_(0.5, 1.5, generator=draw).mul_(signs)
        else:
            parameter.normal_(0.0, 0.1, generator=draw)


def train(
    model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], batch: Batch, steps: int
) -> None:
    """Take real optimizer steps in training mode, then leave no gradients behind."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, batch).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    optimizer.zero_grad()


@dataclass(frozen=True)
class Entry:
    """A model of the zoo, and how to run it.

    Attributes:
        make: the model as its library initialises it; `build` gives it a life.
        batch: the same inputs at every call.
        loss: the one contract for running a model, `compute_loss(model, batch)`.
        backbone: a selector of a part that people freeze.
        head: the name of a module that they train then.
    """

    make: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    backbone: str
    head: str

    def build(self, seed: int = 0, *, steps: int = 2) -> nn.Module:
        """The model in training mode after `steps` optimizer steps; the same bits at every call."""
        with seeded(seed):
            model = live(self.make(), seed)
            train(model, self.loss, self.batch(), steps)
        return model


def classify(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


def classify_twice(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    digit, parity = model(inputs)
    return F.cross_entropy(digit, labels) + F.cross_entropy(parity, labels % 2)


def ask_for_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Models of transformers compute their own loss when they get labels."""
    loss: Tensor = model(**batch).loss
    return loss


def labelled(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Inputs of `shape` (batch first) that are not standard normal, and class labels."""

    def batch() -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(11)
        inputs = torch.randn(shape, generator=draw) * 1.5 + 0.4
        return inputs, torch.randint(CLASSES, shape[:1], generator=draw)

    return batch


def images(name: str, size: int, count: int = 4) -> Callable[[], dict[str, Tensor]]:
    """Keyword inputs of a transformers classifier that takes float inputs called `name`."""
    shape = (count, size) if name == "input_values" else (count, 3, size, size)

    def batch() -> dict[str, Tensor]:
        inputs, labels = labelled(*shape)()
        return {name: inputs, "labels": labels}

    return batch


def tokens(*, sequence_labels: bool) -> Callable[[], dict[str, Tensor]]:
    """Token ids of 4 texts of 12 tokens; labels are the tokens themselves, or a class a text."""

    def batch() -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(12)
        ids = torch.randint(3, models.VOCABULARY, (4, 12), generator=draw)
        labels = torch.randint(CLASSES, (4,), generator=draw) if not sequence_labels else ids
        mask = torch.ones_like(ids)
        mask[0, 8:] = 0
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return batch


ZOO: dict[str, Entry] = {
    "two_branches": Entry(
        models.TwoBranches, labelled(8, 1, 8, 8), classify_twice, "trunk", "second"
    ),
    "mlp_bn1d": Entry(models.mlp, labelled(8, 12), classify, "backbone", "head"),
    "conv_bn3d": Entry(models.conv3d, labelled(4, 1, 6, 6, 6), classify, "backbone", "head"),
    "instance_norm": Entry(
        models.instance_norm, labelled(4, 3, 8, 8), classify, "backbone", "head"
    ),
    "transformer": Entry(models.Transformer, labelled(4, 6, 16), classify, "encoder", "head"),
    "lstm": Entry(models.lstm, labelled(4, 6, 8), classify, "rnn", "head"),
    "gru": Entry(models.gru, labelled(4, 6, 8), classify, "rnn", "head"),
    "resnet18": Entry(models.resnet18, labelled(4, 3, 32, 32), classify, "layer[1-3]", "fc"),
    "mobilenetv3": Entry(
        models.mobilenetv3, labelled(4, 3, 32, 32), classify, "blocks", "classifier"
    ),
    "levit": Entry(models.levit, labelled(4, 3, 64, 64), classify, "stages", "head"),
    "vit_tiny": Entry(models.vit_tiny, labelled(4, 3, 32, 32), classify, "blocks", "head"),
    "convnext": Entry(models.convnext, labelled(4, 3, 32, 32), classify, "stages", "head.fc"),
    "hf_resnet": Entry(
        models.hf_resnet, images("pixel_values", 32), ask_for_loss, "resnet", "classifier"
    ),
    "hf_vit": Entry(models.hf_vit, images("pixel_values", 32), ask_for_loss, "vit", "classifier"),
    "bert": Entry(models.bert, tokens(sequence_labels=False), ask_for_loss, "bert", "classifier"),
    "gpt2": Entry(
        models.gpt2, tokens(sequence_labels=True), ask_for_loss, "transformer.h", "transformer.ln_f"
    ),
    "t5": Entry(
        models.t5, tokens(sequence_labels=True), ask_for_loss, "encoder.block", "decoder.block"
    ),
    "wav2vec2": Entry(
        models.wav2vec2, images("input_values", 1600), ask_for_loss, "wav2vec2", "classifier"
    ),
}
