"""The models of the oracle: the zoo's, one around each kind of module, and some that share memory.

`MODELS["resnet18"]()` gives a model in training mode, a batch and `loss(model, batch)`, with the
same bits at every call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.auditing.faults.nets import NormEval, conv_norm
from tests.freezing import kinds
from tests.zoo import ZOO, fresh, live, seeded

Loss = Callable[[nn.Module, Any], Tensor]
Started = tuple[Any, Any, Loss]


@dataclass(frozen=True)
class Known:
    """What is drawn from about a model.

    Attributes:
        start: gives model, batch and loss.
        parts: names of modules that people freeze.
        head: one that they train then.
        tied: tensors stand at several places or share memory, so that a part is refused.
        checkpoints: activation checkpointing can be switched on.
        bare: the part has no parameters.
    """

    start: Callable[[], Started]
    parts: tuple[str, ...]
    head: str
    tied: bool = False
    checkpoints: bool = False
    bare: bool = False


def two_classes(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch).flatten(1)[:, :2], torch.arange(len(batch)) % 2)


def _of_zoo(name: str) -> Callable[[], Started]:
    return lambda: (fresh(ZOO[name]).train(), ZOO[name].batch(), ZOO[name].loss)


def _of_kind(name: str) -> Callable[[], Started]:
    return lambda: (kinds.build(name).train(), kinds.KINDS[name].inputs(), two_classes)


def _of_net(make: Callable[[], nn.Module], *shape: int) -> Callable[[], Started]:
    def start() -> Started:
        with seeded(9):
            model = live(make()).train()
        batch = torch.randn(*shape, generator=torch.Generator().manual_seed(4)) * 1.5 + 0.4
        return model, batch, two_classes

    return start


class _Flat(nn.Module):
    """Parameters cut from one flat tensor, as some distributed optimizers do it; two overlap."""

    def __init__(self) -> None:
        super().__init__()
        flat = torch.randn(80)
        self.part, self.head = nn.Linear(8, 4), nn.Linear(4, 3)
        self.part.weight = nn.Parameter(flat[:32].view(4, 8))
        self.part.bias = nn.Parameter(flat[32:36])
        self.head.weight = nn.Parameter(flat[34:46].view(3, 4))
        self.head.bias = nn.Parameter(flat[46:49])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x).relu())


class _Tied(nn.Module):
    """An encoder and a decoder that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.middle, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.head.weight = self.part.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.part(x)))


class _Skips(nn.Module):
    """Its `train` passes by a child whose flags are off, for both modes."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(conv_norm(3, 6), nn.Dropout(0.2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(384, 2))

    def train(self, mode: bool = True) -> _Skips:
        self.training = mode
        for child in self.children():
            if any(p.requires_grad for p in child.parameters()):
                child.train(mode)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


class _Norms(nn.Module):
    """Norms in every configuration that torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(
            nn.Conv2d(3, 6, 1),
            nn.BatchNorm2d(6, momentum=None),
            nn.BatchNorm2d(6, momentum=0.0),
            nn.BatchNorm2d(6, affine=False),
            nn.BatchNorm2d(6, track_running_stats=False),
            nn.InstanceNorm2d(6),
            nn.InstanceNorm2d(6, affine=True, track_running_stats=True, momentum=0.2),
            nn.GroupNorm(2, 6),
            nn.Dropout2d(0.1),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


class _Unused(nn.Module):
    """A part of it is there and not run."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.auxiliary = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


class _NormEvalNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = NormEval(conv_norm(3, 6), nn.Dropout(0.1), conv_norm(6, 6, nn.InstanceNorm2d))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(384, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(x))


_ZOO = {
    "two_branches": Known(_of_zoo("two_branches"), ("trunk", "trunk.1", "main"), "second"),
    "mlp_bn1d": Known(_of_zoo("mlp_bn1d"), ("backbone", "backbone.1"), "head"),
    "conv_bn3d": Known(_of_zoo("conv_bn3d"), ("backbone", "backbone.0"), "head"),
    "instance_norm": Known(_of_zoo("instance_norm"), ("backbone",), "head"),
    "transformer": Known(_of_zoo("transformer"), ("encoder", "encoder.layers.0"), "head"),
    "gru": Known(_of_zoo("gru"), ("rnn",), "head"),
    "resnet18": Known(_of_zoo("resnet18"), ("layer1", "layer2.0", "bn1", "layer4"), "fc"),
    "mobilenetv3": Known(_of_zoo("mobilenetv3"), ("blocks", "blocks.1", "bn1"), "classifier"),
    "vit_tiny": Known(_of_zoo("vit_tiny"), ("blocks", "blocks.0", "patch_embed"), "head"),
    "levit": Known(_of_zoo("levit"), ("stages", "stem"), "head"),
    "hf_resnet": Known(_of_zoo("hf_resnet"), ("resnet", "resnet.embedder"), "classifier"),
    "hf_vit": Known(_of_zoo("hf_vit"), ("vit", "vit.embeddings"), "classifier", checkpoints=True),
    "bert": Known(
        _of_zoo("bert"), ("bert", "bert.embeddings", "bert.encoder"), "classifier", checkpoints=True
    ),
    "gpt2": Known(
        _of_zoo("gpt2"), ("transformer.h", "transformer.wte", "transformer"), "lm_head", tied=True
    ),
    "t5": Known(_of_zoo("t5"), ("encoder.block", "shared"), "decoder.block", tied=True),
    "wav2vec2": Known(_of_zoo("wav2vec2"), ("wav2vec2", "wav2vec2.encoder"), "classifier"),
}
_NETS = {
    "flat": Known(_of_net(_Flat, 6, 8), ("part",), "head", tied=True),
    "tied": Known(_of_net(_Tied, 6, 8), ("part", "middle"), "head", tied=True),
    "skips": Known(_of_net(_Skips, 4, 3, 8, 8), ("part", "part.0"), "head"),
    "norms": Known(_of_net(_Norms, 4, 3, 5, 5), ("part", "part.1", "part.6"), "head"),
    "unused": Known(_of_net(_Unused, 6, 8), ("part", "auxiliary"), "head"),
    "norm_eval": Known(_of_net(_NormEvalNet, 4, 3, 8, 8), ("part", "part.0"), "head"),
}
_OF_KINDS = {
    f"kind: {name}": Known(_of_kind(name), ("part",), "head", bare=not kind.parameters)
    for name, kind in kinds.KINDS.items()
}
KNOWN: dict[str, Known] = {**_ZOO, **_NETS, **_OF_KINDS}
MODELS: dict[str, Callable[[], Started]] = {name: known.start for name, known in KNOWN.items()}
