"""Models with a life whose backbone is frozen by flags alone, and the real loop that trains them.

Nothing is held: what happens to the backbone happens. A deed comes at one step, at the place in the
loop where people have it: a callback, the loader, a hook of the forward, the backward or the step.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from tests.zoo import live, seeded
from tests.zoo import train as live_on

STEP = 3
"""The step at which a deed is done."""

CLASSES = 5

Place = Literal["callback", "loader", "forward", "backward", "step hook"]


class Net(nn.Module):
    """A backbone that is frozen, and a head that trains."""

    def __init__(self, backbone: nn.Module, features: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        hidden = features[0] if isinstance(features, tuple) else features
        return self.head(hidden.mean(1) if hidden.dim() == 3 else hidden)


class Tied(nn.Module):
    """Words in and words out by one table; what trains lies between."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {"embedding": nn.Embedding(512, 64), "decoder": nn.Linear(64, 512, bias=False)}
        )
        self.backbone["decoder"].weight = self.backbone["embedding"].weight
        self.head = nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.head(self.backbone["embedding"](x).mean(1))
        return self.backbone["decoder"](hidden)


class Recurrent(nn.Module):
    """The last output of a recurrent layer."""

    def __init__(self, rnn: nn.RNNBase) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0][:, -1]


class Codebook(nn.Module):
    """Codes that follow their inputs and a queue of the last ones, in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(16, 64)
        self.register_buffer("codes", torch.randn(256, 64))
        self.register_buffer("queue", torch.randn(64, 256))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        keys = self.inside(x)
        nearest = torch.cdist(keys, self.codes).argmin(1)
        if self.training:
            self.codes.data[nearest] = 0.9 * self.codes[nearest] + 0.1 * keys.detach()
            self.queue[:, int(self.at) : int(self.at) + len(keys)] = keys.detach().T
            self.at.add_(len(keys))
        return self.codes[nearest] + keys


def cnn() -> nn.Module:
    # 288 KiB in the second convolution, so that the kernel's record has pages to speak of.
    backbone = nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 128, 3, padding=1),
        nn.BatchNorm2d(128),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Net(backbone, 128)


def transformer() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 2, 256, dropout=0.1, batch_first=True)
    return Net(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), 64)


def lstm() -> nn.Module:
    return Net(Recurrent(nn.LSTM(16, 96, num_layers=2, dropout=0.2, batch_first=True)), 96)


def gru() -> nn.Module:
    return Net(Recurrent(nn.GRU(16, 96, batch_first=True)), 96)


def renormed() -> nn.Module:
    return Net(nn.Embedding(512, 64, max_norm=1.0), 64)


def spectral() -> nn.Module:
    return Net(nn.Sequential(parametrizations.spectral_norm(nn.Linear(16, 640))), 640)


def quantized() -> nn.Module:
    observer = FakeQuantize(
        MovingAverageMinMaxObserver, quant_min=0, quant_max=255, dtype=torch.quint8
    )
    return Net(nn.Sequential(nn.Linear(16, 640), observer), 640)


def codebook() -> nn.Module:
    return Net(Codebook(), 64)


def flat() -> nn.Module:
    """All parameters of the backbone are slices of one tensor, as some trainers have it."""
    net = Net(nn.Sequential(nn.Linear(16, 640), nn.ReLU(), nn.Linear(640, 64)), 64)
    sizes = [p.numel() for p in net.backbone.parameters()]
    pieces = torch.randn(sum(sizes)).mul_(0.1).split(sizes)
    for (name, p), piece in zip(list(net.backbone.named_parameters()), pieces, strict=True):
        layer, _, attribute = name.rpartition(".")
        setattr(net.backbone.get_submodule(layer), attribute, nn.Parameter(piece.view(p.shape)))
    return net


class Subject(NamedTuple):
    """A model, what goes in, and the name of its largest frozen tensor."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    largest: str


def _drawn(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(5)) + 0.4


def _words() -> Tensor:
    return torch.arange(20).view(4, 5)


SUBJECTS = {
    "cnn": Subject(cnn, _drawn(4, 3, 8, 8), "backbone.3.weight"),
    "transformer": Subject(transformer, _drawn(4, 5, 64), "backbone.layers.1.linear1.weight"),
    "lstm": Subject(lstm, _drawn(4, 5, 16), "backbone.rnn.weight_hh_l1"),
    "gru": Subject(gru, _drawn(4, 5, 16), "backbone.rnn.weight_hh_l0"),
    "tied": Subject(Tied, _words, "backbone.embedding.weight"),
    "renormed": Subject(renormed, _words, "backbone.weight"),
    "spectral": Subject(spectral, _drawn(4, 16), "backbone.0.parametrizations.weight.original"),
    "quantized": Subject(quantized, _drawn(4, 16), "backbone.0.weight"),
    "codebook": Subject(codebook, _drawn(4, 16), "backbone.codes"),
    "flat": Subject(flat, _drawn(4, 16), "backbone.2.weight"),
}


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(model(inputs), labels)


@cache
def _trained(name: str) -> nn.Module:
    subject = SUBJECTS[name]
    with seeded(3):
        net = live(subject.make(), 3)
        # Where `==` says nothing about bytes: two zeros, and numbers that are none.
        odd = torch.tensor([0.0, torch.nan, -torch.inf, *range(12), torch.nan])
        net.backbone.register_buffer("odd", odd)
        live_on(net, loss_of, (subject.inputs(), torch.arange(4)), 2)
    net.backbone.requires_grad_(False)
    net.backbone.eval()
    return net


class Run:
    """One training: a model, its optimizer, its loader, and what a deed needs of the past."""

    def __init__(self, name: str) -> None:
        subject = SUBJECTS[name]
        self.net: Any = copy.deepcopy(_trained(name))
        self.largest = subject.largest
        self.batch = subject.inputs(), torch.arange(4)
        self.optimizer: Optimizer = SGD(self.net.head.parameters(), lr=0.05, momentum=0.9)
        self.step = 0
        self.past: dict[str, Any] = {}
        self.undo = ExitStack()
        self._place, self._deed = "callback", lambda run: None

    @property
    def weight(self) -> nn.Parameter:
        """The largest frozen tensor, as it hangs there now."""
        owner, _, name = self.largest.rpartition(".")
        found: nn.Parameter = getattr(self.net.get_submodule(owner), name)
        return found

    @property
    def odd(self) -> Tensor:
        """The buffer that no forward uses, with a zero, a NaN and an infinity."""
        found: Tensor = self.net.backbone.odd
        return found

    def arrange(self, place: Place, deed: Callable[[Run], object]) -> None:
        """``deed`` comes at the third step, at ``place``; a callback's just before it begins."""
        self._place, self._deed = place, deed
        self.net.register_forward_pre_hook(lambda *_: self._now("forward"))
        self.net.head.weight.register_post_accumulate_grad_hook(lambda _: self._now("backward"))
        self.optimizer.register_step_pre_hook(lambda *_: self._now("step hook"))

    def _now(self, place: str, step: int = STEP) -> None:
        if (place, self.step) == (self._place, step):
            # Some of the places are within no_grad; a deed begins as any line of a script does.
            with torch.enable_grad():
                self._deed(self)

    def _collate(self, rows: list[Any]) -> tuple[Tensor, Tensor]:
        self._now("loader")
        return self.batch

    def steps(self, count: int) -> Iterator[int]:
        """Train; the number of each step when it has ended."""
        last = self.step + count
        loader = DataLoader(range(count), collate_fn=self._collate)
        batches = iter(loader)
        while self.step < last:
            self.step += 1
            batch = next(batches)
            self.optimizer.zero_grad()
            loss_of(self.net, batch).backward()
            self.optimizer.step()
            yield self.step
            self._now("callback", STEP - 1)
