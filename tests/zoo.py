"""Real models with a life behind them.

A fresh BatchNorm (mean 0, variance 1, gamma 1, counter 0) hides nearly every error that this
project is about. Every model here has random statistics, affine parameters of both signs and
counters that ran, and has been trained for two steps, the same on every build.

    model = ZOO["resnet18"].build()
    loss = ZOO["resnet18"].loss(model, ZOO["resnet18"].batch())

Tests of every part run over `ZOO`. `BREADTH` has more architectures of the same kind, for the few
tests that ask whether something is true of models at large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests import zoo_models as models
from tests import zoo_timm
from tests import zoo_transformers as hf
from tests.zoo_batches import images, labelled, pairs, speech, tokens

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
        if parameter.numel() < 2 or not (_is_constant(parameter) or _is_scale(module, name)):
            continue
        # Some scales start at 0 (the last norm of a residual block), so the value tells nothing.
        if _is_one_a_channel(parameter) and not name.endswith("bias"):
            signs = torch.empty_like(parameter).bernoulli_(0.7, generator=draw) * 2 - 1
            signs.view(-1)[:2] = torch.tensor([1.0, -1.0])
            parameter.uniform_(0.5, 1.5, generator=draw).mul_(signs)
        else:
            parameter.normal_(0.0, 0.1, generator=draw)


def _is_constant(parameter: Tensor) -> bool:
    return bool(parameter.min() == parameter.max())


def _is_one_a_channel(parameter: Tensor) -> bool:
    # Four dimensions: the gain of a convolution that standardises its weight.
    return parameter.dim() in (1, 4) and parameter.numel() == parameter.shape[0]


def _is_scale(module: nn.Module, name: str) -> bool:
    # RepVGG and EfficientNet of transformers draw the scales of their norms close to 0.
    return name == "weight" and isinstance(getattr(module, "running_mean", None), Tensor)


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


@cache
def _built_once(entry: Entry) -> nn.Module:
    return entry.build()


def fresh(entry: Entry) -> nn.Module:
    """A copy of what `entry.build()` gives, which is built once a process."""
    return deepcopy(_built_once(entry))


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
    "resnet18": Entry(zoo_timm.resnet18, labelled(4, 3, 32, 32), classify, "layer[1-3]", "fc"),
    "mobilenetv3": Entry(
        zoo_timm.mobilenetv3, labelled(4, 3, 32, 32), classify, "blocks", "classifier"
    ),
    "levit": Entry(zoo_timm.levit, labelled(4, 3, 64, 64), classify, "stages", "head"),
    "vit_tiny": Entry(zoo_timm.vit_tiny, labelled(4, 3, 32, 32), classify, "blocks", "head"),
    "convnext": Entry(zoo_timm.convnext, labelled(4, 3, 32, 32), classify, "stages", "head.fc"),
    "hf_resnet": Entry(hf.resnet, images("pixel_values", 32), ask_for_loss, "resnet", "classifier"),
    "hf_vit": Entry(hf.vit, images("pixel_values", 32), ask_for_loss, "vit", "classifier"),
    "bert": Entry(hf.bert, tokens(sequence_labels=False), ask_for_loss, "bert", "classifier"),
    "gpt2": Entry(
        hf.gpt2, tokens(sequence_labels=True), ask_for_loss, "transformer.h", "transformer.ln_f"
    ),
    "t5": Entry(
        hf.t5, tokens(sequence_labels=True), ask_for_loss, "encoder.block", "decoder.block"
    ),
    "wav2vec2": Entry(
        hf.wav2vec2, images("input_values", 1600), ask_for_loss, "wav2vec2", "classifier"
    ),
}

_IMAGES = labelled(4, 3, 32, 32)
_PIXELS = images("pixel_values", 32)

BREADTH: dict[str, Entry] = {
    "densenet": Entry(zoo_timm.densenet, _IMAGES, classify, "features", "classifier"),
    "efficientnet": Entry(zoo_timm.efficientnet, _IMAGES, classify, "blocks", "classifier"),
    "swin": Entry(zoo_timm.swin, _IMAGES, classify, "layers", "head.fc"),
    "regnet": Entry(zoo_timm.regnet, _IMAGES, classify, "s[1-4]", "head.fc"),
    "nfnet": Entry(zoo_timm.nfnet, _IMAGES, classify, "stages", "head.fc"),
    "repvgg": Entry(zoo_timm.repvgg, _IMAGES, classify, "stages", "head.fc"),
    "hf_regnet": Entry(hf.regnet, _PIXELS, ask_for_loss, "regnet", "classifier"),
    "hf_mobilenetv2": Entry(hf.mobilenetv2, _PIXELS, ask_for_loss, "mobilenet_v2", "classifier"),
    "hf_efficientnet": Entry(hf.efficientnet, _PIXELS, ask_for_loss, "efficientnet", "classifier"),
    "hf_levit": Entry(hf.levit, images("pixel_values", 64), ask_for_loss, "levit", "classifier"),
    "hf_convnext": Entry(hf.convnext, _PIXELS, ask_for_loss, "convnext", "classifier"),
    "hf_swin": Entry(hf.swin, _PIXELS, ask_for_loss, "swin", "classifier"),
    "whisper": Entry(hf.whisper, speech, ask_for_loss, "model.encoder", "model.decoder"),
    "clip": Entry(hf.clip, pairs, ask_for_loss, "vision_model", "text_model"),
}
