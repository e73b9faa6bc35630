"""The models of bench/accumulate.py, and their batches: the same bits in every process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests import _torchvision, zoo

CLASSES = 10
MB = 10**6

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Subject:
    """A model to be measured.

    Attributes:
        make: as its library initialises it.
        side: of the square images, in pixels.
        dense: whether it labels pixels, not images.
        limits: values of ``memory=`` for ``offload="auto"``, in bytes.
    """

    make: Callable[[], nn.Module]
    side: int
    dense: bool
    limits: tuple[int, ...]

    def build(self) -> nn.Module:
        """In training mode, with statistics that have lived."""
        torch.manual_seed(0)
        return zoo.live(self.make()).train()

    def batch(self, count: int) -> Batch:
        draw = torch.Generator().manual_seed(1)
        images = torch.randn(count, 3, self.side, self.side, generator=draw) * 1.5 + 0.4
        labelled = images.shape[2:] if self.dense else ()
        return images, torch.randint(CLASSES, (count, *labelled), generator=draw)


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean over images, or over pixels."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def resnet50() -> nn.Module:
    import timm

    return timm.create_model("resnet50", num_classes=CLASSES)


class UNet(nn.Module):
    """Encoder and decoder with skips, as Ronneberger et al. 2015, with norms and padding.

    Shapes: (N, 3, H, W) -> (N, CLASSES, H, W); H and W are multiples of 8. About 3 million
    parameters.
    """

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(4)]
        self.down = nn.ModuleList(map(_twice, [3, *widths], widths))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(wide, narrow, 2, stride=2)
            for narrow, wide in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.merge = nn.ModuleList(_twice(2 * narrow, narrow) for narrow in widths[-2::-1])
        self.head = nn.Conv2d(width, CLASSES, 1)
        self.checkpointing = False

    def set_grad_checkpointing(self) -> None:
        """Keep nothing within a block of two convolutions for backward; compute it again."""
        self.checkpointing = True

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, block in enumerate(self.down):
            x = self._run(block, F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = self._run(merge, torch.cat([up(x), skip], 1))
        return self.head(x)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [
            nn.Conv2d(width, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers)


SUBJECTS = {
    "resnet50-64": Subject(resnet50, 64, False, (100 * MB, 250 * MB, 500 * MB, 2000 * MB)),
    "resnet50-128": Subject(resnet50, 128, False, (250 * MB, 800 * MB, 2000 * MB, 6000 * MB)),
    "unet-64": Subject(UNet, 64, True, (100 * MB, 400 * MB, 1000 * MB, 4000 * MB)),
}
_torchvision.install()
