"""What is trainable and never changed, and why: each reason with its near miss."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

from frostline.guarding.idle import IdleWatch

KEY = 5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def train(watch: IdleWatch, net: nn.Module, *optimizers, steps: int = 3, loss=None) -> None:
    loss = loss or (lambda: net(torch.randn(4, 3)).square().sum())
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss().backward()
        for optimizer in optimizers:
            watch.before_step(optimizer)
            optimizer.step()


def idle(watch: IdleWatch) -> dict[str, str]:
    return {entry.name: entry.reason for entry in watch.idle()}


def watched(net: nn.Module, frozen=()) -> IdleWatch:
    return IdleWatch([net], set(map(id, frozen)), KEY)


OTHER = ["other.weight", "other.bias"]


def in_no_optimizer(net: Net) -> tuple[SGD, Callable[[], Tensor] | None]:
    both = lambda: (net(torch.ones(1, 3)) + net.other(torch.ones(1, 3))).square().sum()  # noqa: E731
    return SGD(net.used.parameters(), lr=0.1), both


def no_gradient(net: Net) -> tuple[SGD, Callable[[], Tensor] | None]:
    return SGD(net.parameters(), lr=0.1), None


def gradient_was_zero(net: Net) -> tuple[SGD, Callable[[], Tensor] | None]:
    nothing = lambda: (net(torch.ones(1, 3)) + 0 * net.other(torch.ones(1, 3))).square().sum()  # noqa: E731
    return SGD(net.parameters(), lr=0.1), nothing


def unknown(net: Net) -> tuple[SGD, Callable[[], Tensor] | None]:
    both = lambda: (net(torch.ones(1, 3)) + net.other(torch.ones(1, 3))).square().sum()  # noqa: E731
    groups = [{"params": net.used.parameters()}, {"params": net.other.parameters(), "lr": 0.0}]
    return SGD(groups, lr=0.1), both


@pytest.mark.parametrize("case", [in_no_optimizer, no_gradient, gradient_was_zero, unknown])
def test_reasons(case) -> None:
    net = Net()
    watch = watched(net)
    optimizer, loss = case(net)
    train(watch, net, optimizer, loss=loss)
    assert idle(watch) == dict.fromkeys(OTHER, case.__name__.replace("_", " "))


def decays(net: Net, watch: IdleWatch) -> None:
    zero = lambda: (net(torch.ones(1, 3)) + 0 * net.other(torch.ones(1, 3))).sum()  # noqa: E731
    train(watch, net, SGD(net.parameters(), lr=0.1, weight_decay=0.1), loss=zero)


def one_bit(net: Net, watch: IdleWatch) -> None:
    train(watch, net, SGD(net.used.parameters(), lr=0.1))
    for p in net.other.parameters():
        p.data.view(torch.int32).view(-1)[-1:] ^= 1


def became_frozen(net: Net, watch: IdleWatch) -> None:
    train(watch, net, SGD(net.used.parameters(), lr=0.1))
    net.other.requires_grad_(False)


@pytest.mark.parametrize("case", [decays, one_bit, became_frozen])
def test_near_misses(case) -> None:
    net = Net()
    watch = watched(net)
    case(net, watch)
    assert idle(watch) == {}


def test_what_is_not_watched() -> None:
    net = Net()
    net.used.requires_grad_(False)
    net.register_buffer("count", torch.ones(3))
    net.lazy = nn.LazyLinear(3)
    assert idle(watched(net)) == dict.fromkeys(OTHER, "in no optimizer")
    assert idle(watched(net, frozen=list(net.other.parameters()))) == {}


def test_trainable_later_is_watched_from_then_on() -> None:
    net = Net()
    net.other.requires_grad_(False)
    watch = watched(net)
    train(watch, net, SGD(net.used.parameters(), lr=0.1))
    assert idle(watch) == {}
    with torch.no_grad():
        net.other.weight.add_(1)
    net.other.requires_grad_(True)
    watch.add(net, set())
    watch.add(net, set())
    assert idle(watch) == dict.fromkeys(OTHER, "in no optimizer")


def test_a_tied_tensor_is_named_once() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    net["b"].weight = net["a"].weight
    assert idle(watched(net)) == {"a.weight": "in no optimizer"}


def test_every_one_of_many_optimizers_is_known() -> None:
    layers = nn.ModuleList([nn.Linear(2, 2, bias=False) for _ in range(40)])
    watch = watched(layers)
    optimizers = [SGD(layer.parameters(), lr=0.0) for layer in layers]
    loss = lambda: sum(layer(torch.ones(1, 2)).sum() for layer in layers)  # noqa: E731
    train(watch, layers, *optimizers, loss=loss)
    assert set(idle(watch).values()) == {"unknown"}


def test_a_group_added_late_is_known() -> None:
    net = Net()
    watch = watched(net)
    optimizer = SGD(net.used.parameters(), lr=0.1)
    train(watch, net, optimizer, steps=20)
    optimizer.add_param_group({"params": list(net.other.parameters())})
    train(watch, net, optimizer, steps=1)
    assert idle(watch) == dict.fromkeys(OTHER, "no gradient")


def test_sparse_gradients() -> None:
    net = nn.Embedding(5, 2, sparse=True)
    watch = watched(net)
    train(watch, net, SGD(net.parameters(), lr=0.0), loss=lambda: net(torch.tensor([1, 2])).sum())
    assert idle(watch) == {"weight": "unknown"}
    train(watch, net, SGD(net.parameters(), lr=0.1), loss=lambda: net(torch.tensor([1, 2])).sum())
    assert idle(watch) == {}


def test_watching_changes_nothing() -> None:
    def trained(*, watching: bool) -> dict[str, Tensor]:
        torch.manual_seed(1)
        net = Net()
        watch = watched(net) if watching else IdleWatch([], set(), KEY)
        train(watch, net, Adam(net.parameters(), lr=0.1))
        watch.idle()
        return net.state_dict()

    with_it, without = trained(watching=True), trained(watching=False)
    assert all(torch.equal(with_it[name], without[name]) for name in with_it)
