"""What writes to itself and is no norm: what is said of it is what happens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MinMaxObserver, disable_observer
from torch.nn.utils import parametrizations, spectral_norm

import frostline as fl
from frostline._state import same_bits
from frostline.behaviours import behaviour
from frostline.behaviours.doing import Mechanism
from frostline.behaviours.leaking import leaks
from frostline.freezing.record import WATCH


class Codebook(nn.Module):
    """Written in training mode only; its codes are a parameter that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(4), requires_grad=False)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.codes.data.lerp_(x.mean(0), 0.1)
            self.mean.lerp_(x.mean(0), 0.1)
        return x - self.codes


class Counter(nn.Module):
    """Written in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Registered(Counter):
    """Known to frozen parts; it writes to a parameter, too."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.data.add_(1)
        return super().forward(x)


class Once(nn.Module):
    """Written by its first call, in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.scale == 0:
            self.scale.copy_(x.std())
        return x / self.scale


fl.freezing.register_holder(Registered, lambda module, x: x)


def _embedding(length: float) -> nn.Module:
    module = nn.Embedding(4, 3, max_norm=1.0).requires_grad_(False)
    rows = torch.randn(4, 3)
    module.weight.data = length * rows / rows.norm(dim=1, keepdim=True)
    return module


def _written(module: nn.Module) -> dict[str, Mechanism]:
    found = behaviour(module)
    return {write.tensor: write.by for write in found.now.writes} if found is not None else {}


def _changed(module: nn.Module, x: Tensor) -> set[str]:
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    before = {name: tensor.detach().clone() for name, tensor in own.items()}
    module(x)
    return {name for name, old in before.items() if not same_bits(own[name], old)}


FLOATS, IDS = torch.randn(4, 4), torch.tensor([0, 1, 2, 3])
WRITERS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Mechanism]]] = {
    "codebook": (Codebook, FLOATS, {"codes": "own code", "mean": "own code"}),
    "counter": (Counter, FLOATS, {"calls": "own code"}),
    "long rows": (lambda: _embedding(3.0), IDS, {"weight": "max_norm"}),
    "short rows": (lambda: _embedding(0.9), IDS, {}),
    "observer": (MinMaxObserver, FLOATS, {"min_val": "observer", "max_val": "observer"}),
    "old spectral norm": (
        lambda: spectral_norm(nn.Linear(4, 4)),
        FLOATS,
        {"weight_u": "power iteration", "weight_v": "power iteration"},
    ),
    "old spectral norm of an embedding": (
        lambda: spectral_norm(nn.Embedding(4, 3)),
        IDS,
        {"weight_u": "power iteration", "weight_v": "power iteration"},
    ),
    "norm": (
        lambda: nn.BatchNorm1d(4),
        FLOATS,
        dict.fromkeys(("running_mean", "running_var", "num_batches_tracked"), "statistics"),
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_said_to_be_written_is_written(name: str) -> None:
    make, x, expected = WRITERS[name]
    module = make()
    assert _written(module) == expected
    assert _changed(module, x) == set(expected)


def test_the_parametrisation_iterates() -> None:
    layer = parametrizations.spectral_norm(nn.Linear(4, 4))
    inner = layer.parametrizations.weight[0]
    assert _written(inner) == {"_u": "power iteration", "_v": "power iteration"}
    assert not _written(inner.eval())


def test_a_trainable_table_may_grow_too_long() -> None:
    assert _written(_embedding(0.9).requires_grad_(True)) == {"weight": "max_norm"}


def test_rows_at_the_limit_are_not_trusted() -> None:
    assert _written(_embedding(1.0 - 1e-7)) == {"weight": "max_norm"}


def test_an_observer_that_is_switched_off_is_not_called() -> None:
    model = nn.Sequential(nn.Linear(4, 4), FakeQuantize(MinMaxObserver)).requires_grad_(False)
    fake = model[1]
    observer = fake.activation_post_process
    assert behaviour(observer, fake) is not None
    assert {leak.name for leak in leaks(model)} >= {"1.scale", "1.activation_post_process.min_val"}
    model.apply(disable_observer)
    assert behaviour(observer, fake) is None
    assert leaks(model) == []
    assert _changed(model, FLOATS) == set()


def test_a_registered_holder_is_believed() -> None:
    model = nn.Sequential(Registered(), nn.Linear(4, 1))
    assert _written(model[0]) == {"calls": "own code", "seen": "own code"}
    fl.freeze(model, "0")
    assert _written(model[0]) == {}
    assert _changed(model[0], FLOATS) == set()
    other = nn.Sequential(Counter(), nn.Linear(4, 1))
    fl.freeze(other, "0")
    assert _written(other[0]) == {"calls": "own code"}


def test_a_first_forward_that_was_compared_is_evidence() -> None:
    model = nn.Sequential(Once(), nn.Linear(4, 1))
    model(FLOATS)
    fl.freeze(model, "0")
    assert _written(model[0]) == {"scale": "own code"}
    model(FLOATS)
    assert WATCH not in vars(model[0])
    assert _written(model[0]) == {}
