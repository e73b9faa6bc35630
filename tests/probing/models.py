"""Nets that couple samples in the ways that occur, and others that only look like it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo import live

WIDTH = 6


class HandWritten(nn.Module):
    """A batch norm in the model's own forward, and one of torch behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
        return self.fc(self.norm(x).relu().mean((2, 3)))


class Functional(nn.Module):
    """It calls F.batch_norm by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.conv(x), self.mean, self.var, training=self.training)
        return self.fc(x.relu().mean((2, 3)))


class Deviation(nn.Module):
    """The minibatch standard deviation layer of a discriminator (Karras et al. 2018)."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        group = min(self.group, count)
        y = x.reshape(group, -1, channels, height, width)
        y = (y - y.mean(0)).square().mean(0).add(1e-8).sqrt().mean((1, 2, 3))
        return torch.cat([x, y.view(-1, 1, 1, 1).repeat(group, 1, height, width)], 1)


class Experts(nn.Module):
    """Each token goes to one of three experts; if they have a capacity, those in front go first."""

    def __init__(self, capacity: int | None, *, length_first: bool) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.1)) for _ in range(3)
        )
        self.capacity, self.length_first = capacity, length_first

    def forward(self, x: Tensor) -> Tensor:
        ordered = x.transpose(0, 1) if self.length_first else x
        tokens = ordered.reshape(-1, WIDTH)
        scores = self.gate(tokens).softmax(-1)
        chosen = scores.argmax(-1)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            mine = (chosen == i).nonzero()[:, 0][: self.capacity]
            if len(mine):
                out[mine] = expert(tokens[mine]) * scores[mine, i, None]
        out = out.reshape(ordered.shape)
        return out.transpose(0, 1) if self.length_first else out


class SortedExperts(nn.Module):
    """All tokens in one tensor, sorted by their expert: no shape tells."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.activation = nn.Linear(WIDTH, 3), nn.Tanh()
        self.weight = nn.Parameter(torch.randn(3, WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, WIDTH)
        chosen = self.gate(tokens).argmax(-1)
        order = chosen.argsort(stable=True)
        inner = torch.einsum("ti,tij->tj", tokens[order], self.weight[chosen[order]])
        return self.activation(inner)[order.argsort()].view_as(x)


class WithExperts(nn.Module):
    """Experts beside a residual path."""

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.first, self.experts, self.fc = nn.Linear(WIDTH, WIDTH), experts, nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((x + self.experts(self.first(x))).mean(1))


class Codebook(nn.Module):
    """Vector quantisation; its codebook follows the batch, after the batch was quantised."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(7, WIDTH))
        self.fc = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.detach().reshape(-1, WIDTH)
        nearest = torch.cdist(flat, self.codes).argmin(1)
        codes = self.codes[nearest].view_as(x)
        for code in nearest.unique() if self.training else ():
            self.codes[code].lerp_(flat[nearest == code].mean(0), 0.1)
        return self.fc((x + (codes - x).detach()).mean(1))


class LengthFirst(nn.Module):
    """A norm over all steps of all samples, [length * samples, channels], as in DeepSpeech 2."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.norm, self.fc = nn.GRU(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        steps, _ = self.rnn(x.transpose(0, 1))
        steps = self.norm(steps.flatten(0, 1)).view_as(steps)
        return self.fc(steps).transpose(0, 1)


class Padded(nn.Module):
    """A norm over all steps of all samples; steps that are padding are the same in all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.fc = nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.masked_fill(torch.arange(x.shape[1])[:, None] > 4, 0)
        steps = self.first(x.transpose(0, 1).flatten(0, 1))
        return self.fc(self.norm(steps)).view(x.shape[1], len(x), 5).transpose(0, 1)


class Attention(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.fc = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.attention(x, x, x)[0].mean(1))


class OneByOne(nn.Module):
    """Each sample goes through the norm alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.net(sample[None]) for sample in x]).mean((2, 3))


class Shuffled(nn.Module):
    """Shuffling BN (He et al. 2020): samples stand in another order at the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH))
        self.fc = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        order = torch.arange(len(x)).roll(1)  # theirs is random
        return self.fc(self.net(x[order])[order.argsort()])


class Ghost(nn.Module):
    """Ghost batch norm (Hoffer et al. 2017): each half of the batch has its own statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.fc = nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.norm(half) for half in x.chunk(2)]))


class Rolled(nn.Module):
    """Each sample has its neighbour added."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.roll(1, 0)


class Cumulated(nn.Module):
    """A sample sees those before it, and they do not see it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(0)


class ReZero(nn.Module):
    """The branch with the norm does not reach the output yet (Bachlechner et al. 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.BatchNorm1d(WIDTH), nn.Parameter(torch.zeros(()))
        self.fc = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x + self.scale * self.norm(x))


class Detector(nn.Module):
    """A head on as many places as score well; there is no output but the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.score, self.head = nn.Conv2d(8, 1, 1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.backbone(x)
        sample, _, i, j = (self.score(features) > 0.3).nonzero().T
        return {"loss": self.head(features[sample, :, i, j]).square().sum() / len(x)}


class Untracked(nn.Module):
    """It has no running statistics, so eval mode changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH, track_running_stats=False)
        self.fc = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.first(x)))


def mlp(norm: nn.Module) -> nn.Module:
    return live(nn.Sequential(nn.Linear(WIDTH, WIDTH), norm, nn.ReLU(), nn.Linear(WIDTH, 5)))


def twice_the_same() -> nn.Module:
    norm = nn.BatchNorm1d(WIDTH)
    return live(nn.Sequential(nn.Linear(WIDTH, WIDTH), norm, nn.Tanh(), norm, nn.Linear(WIDTH, 5)))


def discriminator(group: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), Deviation(group), nn.Conv2d(9, 4, 3), nn.GroupNorm(2, 4),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
    )  # fmt: skip


def norms_of_samples() -> nn.Module:
    """Norms that look at one sample only, and dropout."""
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, track_running_stats=True), nn.GroupNorm(2, 4),
        nn.LayerNorm([4, 8, 8]), nn.LocalResponseNorm(3), nn.Dropout2d(0.3), nn.Flatten(),
        nn.Linear(256, 5),
    )  # fmt: skip
    return live(net)


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 10, 10, generator=_draw()) * 1.5 + 0.4


def sequences(count: int = 8) -> Tensor:
    return torch.randn(count, 7, WIDTH, generator=_draw()) * 1.5 + 0.4


def vectors(count: int = 8) -> Tensor:
    return torch.randn(count, WIDTH, generator=_draw()) * 1.5 + 0.4


def _draw() -> torch.Generator:
    return torch.Generator().manual_seed(1)
