"""Small models that exact accumulation must get right, each for the one thing that it does.

As torch initialises them; `cases.py` gives them statistics that have lived.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.zoo_models import CLASSES

WIDTH = 8


def conv_norm(width_in: int, width_out: int, *, inplace: bool = False) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width_out, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(width_out), nn.ReLU(inplace))


class Classifier(nn.Module):
    """A convolution with a norm, what a subclass does with its output, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def middle(self, x: Tensor) -> Tensor:
        """(N, WIDTH, H, W) to the same, or to (N, WIDTH)."""
        return x

    def forward(self, images: Tensor) -> Tensor:
        features = self.middle(self.stem(images))
        return self.head(features.mean((2, 3)) if features.dim() == 4 else features)


class UNet(nn.Module):
    """Two levels down and up; what went down is joined on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([conv_norm(3, 6), conv_norm(6, 12)])
        self.bottom = conv_norm(12, 16)
        self.up = nn.ModuleList([conv_norm(16 + 12, 12), conv_norm(12 + 6, 6)])
        self.out = nn.Conv2d(6, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Images to a class for each pixel, (N, CLASSES, H, W)."""
        x, skips = images, []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottom(x)
        for block in self.up:
            x = F.interpolate(x, scale_factor=2)
            x = block(torch.cat([x, skips.pop()], 1))
        return self.out(x)


class Discriminator(nn.Module):
    """One score an image; its loss asks it twice.

    Args:
        spectral: what a spectral norm is put on its last convolution with.
    """

    def __init__(self, spectral: Callable[[nn.Module], nn.Module] | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_norm(3, WIDTH), nn.MaxPool2d(2), conv_norm(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 1)
        if spectral is not None:
            spectral(self.body[2][0])

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3))).squeeze(1)


class SharedNorm(Classifier):
    """One norm, called twice a forward, whose statistics are the mean of all batches so far."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(WIDTH, momentum=None)
        self.first, self.second = (nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in range(2))

    def middle(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.norm(self.second(x))


class PointNet(nn.Module):
    """A net over the points of a cloud, [batch, coordinates, points], without affine norms."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(3, WIDTH, 1), nn.Conv1d(WIDTH, 2 * WIDTH, 1)
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width, affine=False) for width in (WIDTH, 2 * WIDTH)
        )
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, points: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(points)))
        return self.head(self.norms[1](self.second(x)).amax(2))


class Branching(Classifier):
    """A norm that runs if any pixel is bright, which one is in every microbatch."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = conv_norm(WIDTH, WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        return self.extra(x) if bool(x.amax() > 0.5) else x


class Masked(Classifier):
    """A norm over those samples that are bright, few or none of a microbatch."""

    def __init__(self) -> None:
        super().__init__()
        self.expert = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))

    def middle(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3))
        chosen = x[:, 0].mean((1, 2)) > x[:, 1].mean((1, 2))
        return pooled.index_add(0, chosen.nonzero().squeeze(1), self.expert(pooled[chosen]))


class Distilled(nn.Module):
    """A student, and a teacher in training mode that runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = Classifier(), Classifier()


class Untracked(Classifier):
    """A norm in evaluation mode without running statistics, which uses those of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(WIDTH, track_running_stats=False)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def train(self, mode: bool = True) -> Untracked:
        super().train(mode)
        self.norm.eval()
        return self

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class Functional(Classifier):
    """Norms that no module stands for: F.batch_norm, and torch.batch_norm under it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(WIDTH))
        self.register_buffer("running_var", torch.ones(WIDTH))
        self.gain, self.shift = (nn.Parameter(torch.ones(WIDTH)) for _ in range(2))
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            self.conv(x), self.running_mean, self.running_var, self.gain, bias=self.shift,
            training=True, momentum=0.3,
        )  # fmt: skip
        return F.relu(x)


class Builtin(Functional):
    """The same by torch.batch_norm, whose arguments come in another order."""

    def middle(self, x: Tensor) -> Tensor:
        x = torch.batch_norm(
            self.conv(x), self.gain, self.shift, self.running_mean, self.running_var,
            True, 0.3, 1e-5, False,
        )  # fmt: skip
        return F.relu(x)


class Beside(Classifier):
    """Another layer between two norms."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.after = layer, conv_norm(WIDTH, WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        return self.after(self.layer(x))


def convolution() -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1)


class TwoInputs(nn.Module):
    """An image and a row of numbers, both under norms."""

    def __init__(self) -> None:
        super().__init__()
        self.image = conv_norm(3, WIDTH)
        self.row = nn.Sequential(nn.Linear(6, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(image).mean((2, 3)), self.row(row)], 1))


class InPlace(Classifier):
    """Writes into the output of its norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_norm(3, WIDTH, inplace=True)
        self.first, self.second = (conv_norm(WIDTH, WIDTH, inplace=True) for _ in range(2))
        self.conv, self.norm = convolution(), nn.BatchNorm2d(WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        out = self.norm(self.conv(x))
        out += x
        return F.relu_(out.mul_(0.5))


class Shuffle(Classifier):
    """Half of the channels go past the norm, as a view, and the two halves are mixed."""

    def __init__(self) -> None:
        super().__init__()
        half = WIDTH // 2
        self.blocks = nn.ModuleList([conv_norm(half, half), conv_norm(half, half)])

    def middle(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            kept, changed = x.chunk(2, 1)
            x = torch.stack([kept, block(changed)], 2).flatten(1, 2)
        return x


class Scales(Classifier):
    """Pieces of the channels, each through a norm after the one before was added (Res2Net)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv_norm(2, 2) for _ in range(3))

    def middle(self, x: Tensor) -> Tensor:
        first, *pieces = torch.split(x, 2, 1)
        outputs = [first]
        for block, piece in zip(self.blocks, pieces, strict=True):
            outputs.append(block(outputs[-1] + piece))
        return torch.cat(outputs, 1)


class Aliased(Classifier):
    """Writes into a tensor after the norm, of which a view was taken before it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.block = convolution(), conv_norm(WIDTH, WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        base = self.conv(x)
        view = base.flatten(2)
        normed = self.block(x)
        base.mul_(0.3)  # the view sees this
        return normed + view.view_as(normed)


class Checkpointed(Classifier):
    """Blocks whose norms are met again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv_norm(WIDTH, WIDTH) for _ in range(2))
        self.checkpointing = True

    def middle(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        return x


class CheckpointedOthers(Checkpointed):
    """In the checkpoints there are also layers that iterate or update at every forward."""

    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            nn.utils.parametrizations.spectral_norm(block[0])
            block.insert(0, nn.InstanceNorm2d(WIDTH, affine=True, track_running_stats=True))


class Recurrent(nn.Module):
    """A norm over the outputs of a recurrent layer, [batch, features, steps]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(8, 12, batch_first=True)
        self.norm, self.head = nn.BatchNorm1d(12), nn.Linear(12, CLASSES)

    def forward(self, sequence: Tensor) -> Tensor:
        outputs, _ = self.rnn(sequence)
        return self.head(self.norm(outputs.transpose(1, 2)).mean(2))


class WritesLater(Classifier):
    """Writes, after a norm, into what waited there: the whole tensor, then a part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(conv_norm(WIDTH, WIDTH) for _ in range(2))

    def middle(self, x: Tensor) -> Tensor:
        kept = x * 1.5
        kept += self.blocks[0](x)
        normed = self.blocks[1](kept * 0.7)
        kept[:, ::2] *= 0.5
        return kept + normed


class NormFirst(nn.Module):
    """Norms on the batch itself, and on what the loss gets."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, CLASSES, 3)
        self.last = nn.BatchNorm1d(CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.conv(self.first(images)).mean((2, 3)))


class ComputedGain(Classifier):
    """The norm's weight is no parameter but computed from one; it has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(WIDTH))
        self.register_buffer("running_mean", torch.zeros(WIDTH))
        self.register_buffer("running_var", torch.ones(WIDTH))
        self.conv = convolution()

    def middle(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return F.batch_norm(self.conv(x), *statistics, self.gain.exp(), training=True).relu()


class Unused(Classifier):
    """The output of one norm goes nowhere, but its statistics move."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.block = conv_norm(WIDTH, WIDTH), conv_norm(WIDTH, WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.block(x)


class Auxiliary(Classifier):
    """A second head under a norm, which not every microbatch needs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = conv_norm(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.stem(images)
        second = self.second(self.block(features).mean((2, 3))).squeeze(1)
        return self.head(features.mean((2, 3))), second


class Cached(Classifier):
    """Keeps a map of positions that it made at its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.block = conv_norm(WIDTH, WIDTH)
        self.positions: Tensor | None = None

    def middle(self, x: Tensor) -> Tensor:
        if self.positions is None:
            self.positions = torch.linspace(0, 1, x[0].numel(), dtype=x.dtype).view_as(x[0])
        return self.block(x + self.positions) * self.positions


class Tied(Classifier):
    """One weight in two convolutions, a norm after each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = convolution(), convolution()
        self.second.weight = self.first.weight
        self.norms = nn.ModuleList(nn.BatchNorm2d(WIDTH) for _ in range(2))

    def middle(self, x: Tensor) -> Tensor:
        x = F.relu(self.norms[0](self.first(x)))
        return F.relu(self.norms[1](self.second(x)))


class Dropping(Classifier):
    """Dropout between two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.block = nn.Dropout(0.3), conv_norm(WIDTH, WIDTH)

    def middle(self, x: Tensor) -> Tensor:
        return self.block(self.dropout(x))
