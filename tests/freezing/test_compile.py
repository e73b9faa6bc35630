"""The hold inside compiled code: frozen before or after compiling, and let go again."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils import weight_norm as hooked_weight_norm

import frostline as fl
from tests.freezing.content import content, moved, steps
from tests.zoo import live


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Codebook(nn.Module):
    """A vector quantiser that moves its codebook by exponential averages, through `.data`."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(x, self.codes).argmin(-1)
        picked = nn.functional.one_hot(nearest, 4).to(x.dtype)
        if self.training:
            self.codes.mul_(0.9).add_(picked.T @ x.detach(), alpha=0.1)
        return x + (picked @ self.codes - x).detach()


class Counter(nn.Module):
    """Counts its calls in training mode, in a buffer; has a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(6))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return x + self.token


def rows() -> Tensor:
    return torch.randn(8, 6) * 1.5 + 0.4


def images() -> Tensor:
    return torch.randn(4, 6, 5, 5) * 1.5 + 0.4


def volumes() -> Tensor:
    return torch.randn(4, 6, 3, 3, 3) * 1.5 + 0.4


def sequences() -> Tensor:
    return torch.randn(4, 5, 6)


def tokens() -> Tensor:
    return torch.randint(9, (4, 5))


Kind = tuple[Callable[[], nn.Module], Callable[[], Tensor]]

KINDS: dict[str, Kind] = {
    "BatchNorm1d": (lambda: nn.BatchNorm1d(6), rows),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(6), images),
    "BatchNorm3d": (lambda: nn.BatchNorm3d(6), volumes),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(6, True, True, True), images),
    "Dropout": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), rows),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 6)), rows),
    "spectral_norm by hook": (lambda: hooked_spectral_norm(nn.Linear(6, 6)), rows),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 6)), rows),
    "weight_norm by hook": (lambda: hooked_weight_norm(nn.Linear(6, 6)), rows),
    "codebook": (Codebook, rows),
    "counter": (Counter, rows),
    "FakeQuantize": (lambda: FakeQuantize(MovingAverageMinMaxObserver), rows),
    "Embedding max_norm": (lambda: nn.Embedding(9, 6, max_norm=0.5), tokens),
    "LSTM": (lambda: nn.LSTM(6, 6, 2, dropout=0.3, batch_first=True), sequences),
    "GRU": (lambda: nn.GRU(6, 6, 2, dropout=0.3, batch_first=True), sequences),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(6, 2, 12, dropout=0.3, batch_first=True),
        sequences,
    ),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


class Net(nn.Module):
    """A part that will be frozen, under a head that trains."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        y = y[0] if isinstance(y, tuple) else y
        return self.head(y.movedim(1, -1) if y.dim() > 3 else y)


def built(kind: str) -> tuple[nn.Module, Tensor]:
    make, batch = KINDS[kind]
    return live(Net(make())), batch()


def loss_on(x: Tensor) -> Callable[[nn.Module], Tensor]:
    return lambda model: model(x).square().mean()


def compiled(net: nn.Module, **options: Any) -> nn.Module:
    return torch.compile(net, backend="aot_eager", **options)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "frozen", ["before compiling", pytest.param("after running", marks=pytest.mark.slow)]
)
@every_kind
def test_what_is_frozen_holds_in_compiled_code(kind: str, frozen: str) -> None:
    net, x = built(kind)
    if frozen == "before compiling":
        fl.freeze(net, "part")
    model = compiled(net)
    if frozen == "after running":
        model.train()
        model(x).mean().backward()
        fl.freeze(net, "part")
    sealed, head = content(net.part), content(net.head)

    steps(model, loss_on(x), 2)

    assert moved(sealed, net.part) == []
    assert moved(head, net.head) == ["bias", "weight"]
    torch.testing.assert_close(model(x), net(x))
    assert torch.equal(model(x), model(x)), "in eval mode one input has one output"


@every_kind
def test_letting_go_reaches_compiled_code(kind: str) -> None:
    net, x = built(kind)
    model = compiled(net)
    fl.freeze(net, "part")
    steps(model, loss_on(x), 1)
    sealed = content(net.part)

    fl.unfreeze(net, "part")
    steps(model, loss_on(x), 2)

    # Each kind has something that training moves: a hold that stuck in a graph shows here.
    assert (moved(sealed, net.part) != []) == bool(sealed)


@pytest.mark.parametrize("handle", ["the compiled module", "the module inside"])
def test_freezing_a_compiled_module_freezes_the_one_inside(handle: str) -> None:
    net, x = built("BatchNorm2d")
    model = compiled(net)
    part = fl.freeze(model if handle == "the compiled module" else net, "part")
    assert sorted(part.tensors)[0] == "part.bias", "names know nothing of the wrapper"
    assert part.model is net
    steps(model, loss_on(x), 2)
    assert part.changes() == []


def test_toggling_compiles_one_graph_more_and_then_none() -> None:
    """A fresh class per freeze would be a new graph per freeze."""
    net, x = built("BatchNorm2d")
    counter = CompileCounterWithBackend("aot_eager")
    model = torch.compile(net, backend=counter, fullgraph=True)
    model.train()
    model(x).mean().backward()
    first = counter.frame_count
    seen = []
    # More often than torch's limit of 8 recompilations, beyond which fullgraph raises.
    for _ in range(10):
        part = fl.freeze(net, "part")
        sealed = content(net.part)
        model.train()
        model(x).mean().backward()
        assert moved(sealed, net.part) == []
        part.undo()
        model(x).mean().backward()
        assert "running_mean" in moved(sealed, net.part)
        seen.append(counter.frame_count - first)
    assert seen[-1] <= 2
    assert seen[0] == seen[-1], f"every toggle compiled again: {seen}"


def test_ten_models_of_one_class_share_the_graphs_of_one() -> None:
    """Held classes are one a base class, so a second model finds the first one's graphs."""
    counter = CompileCounterWithBackend("aot_eager")
    counts = []
    run = torch.compile(lambda net, x: net(x), backend=counter, fullgraph=True, dynamic=False)
    for _ in range(10):
        net, x = built("BatchNorm1d")
        fl.freeze(net, "part")
        net.train()
        run(net, x).mean().backward()
        counts.append(counter.frame_count)
    assert counts[-1] <= 8, counts


class Composite(nn.Module):
    """Convolution, norm, dropout, max_norm embedding and attention in one graph."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 8, max_norm=0.5)
        self.trunk = nn.Sequential(
            nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5)
        )
        self.calls = Counter6to8()
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.trunk(self.words(ids).transpose(1, 2)).transpose(1, 2)
        return self.head(self.calls(x).mean(1))


class Counter6to8(Counter):
    """The counter, eight wide."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(8))


@pytest.mark.slow
@pytest.mark.parametrize("frozen", ["before compiling", "after running"])
def test_inductor_keeps_the_hold_in_one_graph(frozen: str) -> None:
    net, x = live(Composite()), tokens()
    select = ["words", "trunk", "calls"]
    if frozen == "before compiling":
        fl.freeze(net, select)
    with warnings.catch_warnings():
        # Inductor's own advice about the machine is no finding of this test.
        warnings.simplefilter("ignore")
        model = torch.compile(net, fullgraph=True)
        if frozen == "after running":
            # Embedding with max_norm writes in the forward, which Inductor must see at least once.
            model.eval()
            model(x)
            fl.freeze(net, select)
        sealed = [content(net.words), content(net.trunk), content(net.calls)]
        steps(model, loss_on(x), 3)
        now = [content(net.words), content(net.trunk), content(net.calls)]
        assert now == sealed
        torch.testing.assert_close(model(x), net(x))
