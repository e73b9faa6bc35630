"""Modules that no registry knows and that write to themselves even in eval mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.errors import FrozenStateChanged
from frostline.freezing import register_holder


class Restless(nn.Module):
    """Counts every call, whatever the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x)


class Rebinding(Restless):
    """Puts a new tensor into its buffer instead of writing to the old one."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.linear(x)


class AttributeWriter(Restless):
    """Writes to a plain tensor attribute, which no state dict knows."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(2)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.detach().sum(0))
        return self.linear(x)


class Quiet(Restless):
    """Reads its buffer and writes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.calls[0]


class Caching(nn.Module):
    """Builds a table at its first forward, as rotary embeddings do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.arange(2.0))
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = self.frequencies.cos()
        return x * self.table


def net_with(module: nn.Module) -> nn.Sequential:
    return nn.Sequential(module, nn.Linear(2, 2))


X = torch.ones(4, 2)


@pytest.mark.parametrize(
    ("cls", "name"),
    [(Restless, "0.calls"), (Rebinding, "0.calls"), (AttributeWriter, "0.seen")],
)
def test_first_forward_names_the_write_and_puts_the_value_back(
    cls: type[nn.Module], name: str
) -> None:
    net = net_with(cls())
    part = fl.freeze(net, "0")
    with pytest.raises(FrozenStateChanged) as caught:
        net(X)
    assert [(change.name, change.kind) for change in caught.value.changes] == [(name, "value")]
    assert name in str(caught.value)
    assert f"register_holder({cls.__name__}, forward)" in str(caught.value)
    assert part.changes() == []
    assert part.tensors[name].eq(0).all()


def test_next_forward_is_compared_too_after_one_that_wrote() -> None:
    net = net_with(Restless())
    part = fl.freeze(net, "0")
    for _ in range(2):
        with pytest.raises(FrozenStateChanged):
            net(X)
    assert part.ok


@pytest.mark.parametrize("mode", ["eval", "follow"])
def test_watched_with_both_modes(mode: str) -> None:
    net = net_with(Restless())
    fl.freeze(net, "0", mode=mode)
    with pytest.raises(FrozenStateChanged, match=r"0\.calls"):
        net(X)


def test_control_flag_only_says_nothing() -> None:
    net = net_with(Restless()).eval().requires_grad_(False)
    net(X)
    assert net[0].calls.eq(1).all()


@pytest.mark.parametrize("cls", [Quiet, Caching])
def test_modules_that_write_nothing_pass(cls: type[nn.Module]) -> None:
    net = net_with(cls())
    part = fl.freeze(net, "0")
    for _ in range(2):
        net.train()(X).sum().backward()
    assert part.changes() == []


def test_watch_ends_with_the_first_clean_forward() -> None:
    class Later(Restless):
        late = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if self.late else self.linear(x)

    net = net_with(Later())
    part = fl.freeze(net, "0")
    net(X)
    net[0].late = True
    net(X)
    # Nobody watches any more, at no cost a call; what it wrote is named all the same.
    assert [(c.name, c.kind) for c in part.changes()] == [("0.calls", "value")]


def test_left_out_it_counts_on() -> None:
    net = nn.Sequential(net_with(Restless()), nn.Linear(2, 2))
    part = fl.freeze(net, "0", exclude="0.0")
    net.train()(X)
    assert net[0][0].calls.eq(1).all()
    assert part.ok


def test_registered_holder_holds() -> None:
    class Registered(Restless):
        pass

    class Child(Registered):
        pass

    register_holder(Registered, lambda module, x: module.linear(x))
    for cls in (Registered, Child):
        net = net_with(cls())
        expected = net[0].linear(X)
        part = fl.freeze(net, "0")
        assert torch.equal(net.train()[0](X), expected)
        assert part.changes() == []
        part.undo()
        net(X)
        assert net[0].calls.eq(1).all()


def test_registered_holder_holds_with_follow() -> None:
    class Following(Restless):
        pass

    register_holder(Following, lambda module, x: module.linear(x))
    net = net_with(Following())
    part = fl.freeze(net, "0", mode="follow")
    net.train()(X)
    assert part.changes() == []


def test_holder_registered_twice_or_too_late() -> None:
    class Twice(Restless):
        pass

    class TooLate(Restless):
        pass

    register_holder(Twice, lambda module, x: x)
    with pytest.raises(ValueError, match=r"Twice has a holder already"):
        register_holder(Twice, lambda module, x: x)
    fl.freeze(net_with(TooLate()), "0")
    with pytest.raises(ValueError, match=r"TooLate .* before"):
        register_holder(TooLate, lambda module, x: x)
