"""Small nets in the shapes that the threads are about, with statistics that have lived."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo import live, seeded


def conv_norm(width_in: int, width_out: int, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    return nn.Sequential(nn.Conv2d(width_in, width_out, 3, padding=1), norm(width_out), nn.ReLU())


class Detector(nn.Module):
    """A backbone of convolutions and norms, a neck with norms of its own, a head."""

    def __init__(self, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone or nn.Sequential(conv_norm(3, 6), conv_norm(6, 8))
        self.neck = conv_norm(8, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.neck(self.backbone(x)))


class NormEval(nn.Sequential):
    """A backbone that puts its norms back into eval mode in `train`, as detection libraries do."""

    def train(self, mode: bool = True) -> NormEval:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


class Mlp(nn.Module):
    """No norm and no dropout: what moves here, an optimizer moves."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 12)
        self.middle = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x).relu()))


class Around(nn.Module):
    """A part of interest between a trainable stem and a trainable head."""

    def __init__(self, part: nn.Module, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.part = part
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.part(self.stem(x)))


def detector(backbone: nn.Module | None = None) -> Detector:
    return _lived(lambda: Detector(backbone))


def mlp() -> Mlp:
    return _lived(Mlp)


def around(make: type[nn.Module] | object) -> Around:
    return _lived(lambda: Around(make()))  # type: ignore[operator]


def _lived(make):  # type: ignore[no-untyped-def]
    with seeded(7):
        return live(make()).train()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 1.5 + 0.4


def vectors(count: int = 6, width: int = 8) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(2)) * 1.5 + 0.4


def squared(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def classes(model: nn.Module, batch: Tensor) -> Tensor:
    logits = model(batch).flatten(1)
    return F.cross_entropy(logits, torch.arange(len(batch)) % logits.shape[1])
