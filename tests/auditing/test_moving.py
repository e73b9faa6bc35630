"""Which frozen parameters an optimizer moves: read, against a real step."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import frostline as fl
from frostline._names import places
from frostline._state import same_bits
from frostline.auditing.claim import claim
from frostline.auditing.moving import Moving, moving
from tests.everything import everything, forget_other_tests

OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD, rate 0": lambda p: torch.optim.SGD(p, lr=0.0, momentum=0.9),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD, decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "Adam": lambda p: torch.optim.Adam(p),
    "AdamW": lambda p: torch.optim.AdamW(p),
    "AdamW, no decay": lambda p: torch.optim.AdamW(p, weight_decay=0.0),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p),
    "Adagrad": lambda p: torch.optim.Adagrad(p),
}
GRADIENTS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "none": lambda p: None,
    "zero": torch.zeros_like,
    "some": torch.ones_like,
}

pytestmark = pytest.mark.usefixtures("small_heap")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))


def stepped(model: nn.Module, optimizer: Optimizer) -> set[int]:
    """The slow way: copy both, step, compare bytes."""
    twin, other = deepcopy((model, optimizer))
    for old, new in zip(model.parameters(), twin.parameters(), strict=True):
        new.grad = old.grad.clone() if old.grad is not None else None
    other.step()
    pairs = zip(model.parameters(), twin.parameters(), strict=True)
    return {id(old) for old, new in pairs if not same_bits(old, new)}


def found(model: nn.Module, optimizer: Optimizer, frozen: object = None) -> Moving:
    return moving(optimizer, claim(model, frozen), places(model))


@pytest.mark.parametrize("lived", [False, True], ids=["new", "with state"])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_as_a_real_step(name: str, gradient: str, lived: bool) -> None:
    forget_other_tests()
    model = net()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    if lived:
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    model[0].requires_grad_(False)
    for parameter in model[0].parameters():
        parameter.grad = GRADIENTS[gradient](parameter)
    before = everything(model, optimizer), torch.get_rng_state().tolist()
    answer = found(model, optimizer)
    assert (everything(model, optimizer), torch.get_rng_state().tolist()) == before
    assert answer.undecided == {}
    assert answer.sure == stepped(model, optimizer)


def test_what_is_held_is_not_moved() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    fl.freeze(model, "0")
    model[0].weight.grad = torch.ones(2, 2)
    assert found(model, optimizer) == Moving()


def test_claimed_and_trainable_depends_on_a_gradient() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert set(found(model, optimizer, "0").undecided) == {id(p) for p in model[0].parameters()}


def test_outside_of_the_optimizer_nothing_moves() -> None:
    model = net()
    model[0].requires_grad_(False)
    model[0].weight.grad = torch.ones(2, 2)
    assert found(model, torch.optim.SGD(model[1].parameters(), lr=0.1)) == Moving()


def test_lbfgs_is_undecided() -> None:
    model = net()
    model[0].requires_grad_(False)
    answer = found(model, torch.optim.LBFGS(model.parameters()))
    assert set(answer.undecided) == {id(p) for p in model[0].parameters()}


class Odd(Optimizer):
    """Dislikes a stand-in."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(parameters, {})
        self.known = {id(p) for p in parameters}

    def step(self, closure: object = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if id(p) not in self.known:
                    raise KeyError("who is this?")


def test_an_optimizer_that_takes_no_stand_in_is_undecided() -> None:
    model = net()
    optimizer = Odd(list(model.parameters()))
    model[0].requires_grad_(False)
    model[0].weight.grad = torch.ones(2, 2)
    assert set(found(model, optimizer).undecided) == {id(model[0].weight)}


def _slices(first: slice, second: slice) -> nn.ParameterDict:
    flat = torch.arange(8.0)
    return nn.ParameterDict({
        "frozen": nn.Parameter(flat[first], requires_grad=False),
        "trained": nn.Parameter(flat[second]),
    })  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (slice(0, 5), slice(4, 8), True),
        (slice(0, 4), slice(4, 8), False),
        (slice(0, 8, 2), slice(1, 8, 2), False),
        (slice(0, 8, 2), slice(0, 2), True),
    ],
)
def test_memory_shared_with_something_trainable(first: slice, second: slice, shared: bool) -> None:
    model = _slices(first, second)
    answer = found(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert set(answer.undecided) == ({id(model["frozen"])} if shared else set())
