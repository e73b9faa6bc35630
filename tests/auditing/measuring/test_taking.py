"""What a step is said to change, against the slow obvious way: copy all, step, compare bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import frostline as fl
from frostline._names import named_tensors
from frostline.auditing.measuring import measure
from tests.auditing.measuring.steps import X, changed, names, net
from tests.auditing.measuring.surroundings import surroundings
from tests.everything import bits, forget_other_tests
from tests.zoo import ZOO, fresh, seeded

Loss = Callable[[nn.Module, Any], Tensor]
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "none": lambda ps: None,  # type: ignore[return-value,dict-item]
    "SGD": lambda ps: torch.optim.SGD(ps, lr=0.1),
    "SGD, rate 0": lambda ps: torch.optim.SGD(ps, lr=0.0, momentum=0.9),
    "SGD, momentum and decay": lambda ps: torch.optim.SGD(
        ps, lr=0.1, momentum=0.9, weight_decay=0.1
    ),
    "AdamW": lambda ps: torch.optim.AdamW(ps),
    "AdamW, rate 0": lambda ps: torch.optim.AdamW(ps, lr=0.0),
    "RMSprop": lambda ps: torch.optim.RMSprop(ps),
    "Rprop": lambda ps: torch.optim.Rprop(ps),
    "LBFGS": lambda ps: torch.optim.LBFGS(ps, lr=0.1, max_iter=2),
}
MODELS = ("mlp_bn1d", "two_branches", "instance_norm", "transformer", "gru")
SLOW = ("resnet18", "hf_resnet", "bert", "hf_vit")


@pytest.fixture(autouse=True, scope="module")
def _alone() -> None:
    forget_other_tests()


def _frozen(name: str, how: str) -> nn.Module:
    entry = ZOO[name]
    model = fresh(entry)
    if how == "held":
        fl.freeze(model, entry.backbone)
    elif how != "trainable":
        for each in fl.selection.select(model, entry.backbone).tensors:
            if each.kind == "parameter":
                each.tensor.requires_grad_(False)
    return model.eval() if how == "eval" else model


def _states(model: nn.Module) -> dict[str, Any]:
    return {e.name: (e.tensor.shape, e.tensor.dtype, bits(e.tensor)) for e in named_tensors(model)}


def obviously(
    model: nn.Module, optimizer: Optimizer | None, batch: Any, loss: Loss, train: bool
) -> tuple[set[str], set[str]]:
    """Names of what a step changes, and of what got a gradient; the model is not the same after."""
    before = _states(model)
    grads = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    if train:
        model.train()
    if isinstance(optimizer, torch.optim.LBFGS):
        calls = []

        def closure() -> Tensor:
            if calls:
                optimizer.zero_grad()
            calls.append(1)
            value = loss(model, batch)
            value.backward()
            return value

        optimizer.step(closure)
    else:
        value = loss(model, batch)
        if value.requires_grad:
            value.backward()
    reached = {
        n for n, p in model.named_parameters() if p.grad is not None and grads[n] is not p.grad
    }
    if optimizer is not None and not isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step()
    after = _states(model)
    return {name for name in before if before[name] != after[name]}, reached


def _compare(name: str, kind: str, how: str, *, train: bool, lived: bool) -> None:
    entry, model = ZOO[name], _frozen(name, how)
    optimizer = OPTIMIZERS[kind]([p for p in model.parameters() if p.requires_grad])
    batch = entry.batch()
    if lived and optimizer is not None and kind != "LBFGS":
        entry.loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = surroundings([model], optimizer, batch)
    with seeded(3):
        step = measure(model, optimizer, batch, entry.loss, train=train)
    assert surroundings([model], optimizer, batch) == before
    with seeded(3):
        changed, reached = obviously(model, optimizer, batch, entry.loss, train)
    assert names(model, step.changed) == changed
    assert step.reached is not None
    assert names(model, step.reached) == reached
    assert not step.raised
    assert step.undecided == {}


@pytest.mark.parametrize("how", ["trainable", "flags", "eval", "held"])
@pytest.mark.parametrize("name", MODELS)
def test_the_set_that_changes(name: str, how: str) -> None:
    kinds = list(OPTIMIZERS)
    first = MODELS.index(name) + ["trainable", "flags", "eval", "held"].index(how)
    for number in range(3):
        kind = kinds[(first + 3 * number) % len(kinds)]
        _compare(name, kind, how, train=number % 2 == 1, lived=number == 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("how", ["trainable", "flags", "eval", "held"])
@pytest.mark.parametrize("name", [*MODELS, *SLOW])
def test_the_set_that_changes_everywhere(name: str, how: str, kind: str) -> None:
    for train in (False, True):
        for lived in (False, True):
            _compare(name, kind, how, train=train, lived=lived)


# --- near misses -------------------------------------------------------------------------------


def test_momentum_0_moves_the_counter_alone() -> None:
    assert changed(net(0.0)) == {"1.num_batches_tracked"}
    assert changed(net(0.0).eval()) == set()
    assert changed(net()) == {"1.num_batches_tracked", "1.running_mean", "1.running_var"}


@pytest.mark.parametrize("kind", ["SGD, rate 0", "AdamW, rate 0"])
def test_rate_0_moves_nothing(kind: str) -> None:
    model = net().eval()
    assert changed(model, OPTIMIZERS[kind](model.parameters())) == set()


def _zero(model: nn.Module, batch: Tensor) -> Tensor:
    return 0 * model(batch).sum()


def test_a_gradient_of_zeros() -> None:
    model = net().eval()
    parameters = {name for name, _ in model.named_parameters()}
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    assert changed(model, plain, loss=_zero) == set()
    step = measure(model, plain, X, _zero, train=False)
    assert step.reached == {id(p) for p in model.parameters()}
    decay = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    assert changed(model, decay, loss=_zero) == parameters
    moving = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(X).square().sum().backward()
    moving.step()
    moving.zero_grad()
    assert changed(model, moving, loss=_zero) == parameters


def test_an_old_gradient_moves_what_is_frozen() -> None:
    model = net().eval()
    model(X).sum().backward()
    model[0].requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert {"0.weight", "0.bias"} <= changed(model, optimizer)
    step = measure(model, optimizer, X, None, train=False)
    assert names(model, step.reached) == {"1.weight", "1.bias", "2.weight", "2.bias"}
    model[0].weight.grad.zero_()
    assert "0.weight" not in changed(model, optimizer)


def test_gradients_add_to_those_that_are_there() -> None:
    model = net().eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    (-model(X).mean()).backward()
    # What is there and what comes are opposite, so the sum moves nothing.
    assert changed(model, optimizer) == set()


def test_modes_are_those_of_now_or_after_train() -> None:
    model = net()
    model[1].eval()
    assert changed(model) == set()
    assert len(changed(model, train=True)) == 3
    assert not model[1].training
