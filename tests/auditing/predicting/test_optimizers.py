"""What optimizers move, with and without gradients, in all their forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline._names import named_tensors
from frostline.auditing.predicting import predict
from tests.auditing.predicting.truth import compared, really, sgd, without_data
from tests.auditing.predicting.writers import batch
from tests.zoo import live, seeded

KINDS = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adadelta", "Adagrad", "RMSprop",
         "Rprop", "ASGD", "Adafactor")  # fmt: skip
FORMS: list[dict[str, Any]] = [
    {},
    {"lr": 0.0},
    {"weight_decay": 0.1},
    {"foreach": True},
    {"foreach": False},
    {"fused": True},
    {"momentum": 0.9},
    {"amsgrad": True},
    {"lr": torch.tensor(0.01)},
]


def squared(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).square().sum()


def net() -> nn.Module:
    """The bias of its first layer stands before batch norm; its third is frozen."""
    with seeded(2):
        model = nn.Sequential(
            nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)
        )
    live(model)[2].requires_grad_(False)
    return model.train()


def made(kind: str, form: dict[str, Any], model: nn.Module) -> Optimizer | None:
    try:
        return getattr(torch.optim, kind)(model.parameters(), **form)
    except (TypeError, ValueError, RuntimeError):
        return None  # it has no such form


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lived", [False, True], ids=["new", "lived"])
def test_every_form_of_an_optimizer(kind: str, lived: bool) -> None:
    for form in (FORMS[0], FORMS[1], FORMS[-1]) if lived else FORMS:
        model = net()
        optimizer = made(kind, form, model)
        if optimizer is None:
            continue
        if lived:
            squared(model, batch()).backward()
            optimizer.step()
            optimizer.zero_grad()
            model[4].requires_grad_(False)
        found = compared(model, optimizer, batch(), squared)
        assert found.wrong == set(), form
        # Rprop stands still where the sign of a gradient turned, which values alone tell.
        everything = {name for name, _ in model.named_parameters()}
        turns = kind == "Rprop" and lived
        assert set(found.undecided) <= (everything if turns else {"0.bias"}), form


def test_a_stale_gradient_moves_a_frozen_parameter() -> None:
    model = net()
    model[2].weight.grad = torch.ones_like(model[2].weight)
    model[2].bias.grad = torch.zeros_like(model[2].bias)
    found = compared(model, sgd, batch(), squared)
    assert "2.weight" in found.predicted
    assert "2.bias" not in found.predicted
    assert found.wrong == set()
    assert id(model[2].weight) not in found.step.reached


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_decay_moves_a_parameter_whose_gradient_is_zero(decay: float) -> None:
    model = net()
    model[2].weight.grad = torch.zeros_like(model[2].weight)
    found = compared(
        model,
        lambda m: torch.optim.AdamW(m.parameters(), weight_decay=decay),
        batch(),
        squared,
    )
    assert ("2.weight" in found.predicted) == (decay > 0)
    assert found.wrong == set()


def test_gradients_that_were_there_count_as_reached_only_when_added_to() -> None:
    model = net()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    step = predict(model, sgd(model), without_data(batch()), squared, train=False)
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    assert step.reached == trainable


def test_half_precision_may_lose_a_small_step() -> None:
    model = net().to(torch.bfloat16)
    found = compared(
        model, lambda m: torch.optim.SGD(m.parameters(), lr=1e-7), batch().bfloat16(), squared
    )
    assert found.wrong == set()
    assert {"4.weight", "4.bias"} <= set(found.undecided)


class Blind(Optimizer):
    """Of a third party: asks for a value, and moves by it."""

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.grad.sum().item() > 0:
                    p.data.sub_(p.grad)


class Lion(Optimizer):
    """Of a third party, by ``.data`` (Chen et al. 2023)."""

    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("average", torch.zeros_like(p))
                p.data.mul_(1 - 0.01 * 0.1)
                p.data.add_((average * 0.9 + p.grad * 0.1).sign_(), alpha=-0.01)
                average.lerp_(p.grad, 0.01)


def test_an_optimizer_of_somebody_else() -> None:
    found = compared(net(), lambda m: Lion(m.parameters(), {}), batch(), squared)
    assert found.wrong == set()
    assert {"0.weight", "4.weight"} <= found.predicted
    blind = compared(net(), lambda m: Blind(m.parameters(), {}), batch(), squared)
    assert blind.wrong == set()
    assert blind.undecided["4.weight"].startswith("what Blind does with it: its code depends on")
    assert "2.weight" not in blind.undecided


def test_lbfgs_leaves_open_what_it_does_to_frozen_parameters() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1)
    step = predict(model, optimizer, without_data(batch()), squared, train=False)
    before = {id(e.tensor): e.tensor.detach().clone() for e in named_tensors(model)}

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = squared(model, batch())
        loss.backward()
        return loss

    optimizer.step(closure)
    changed = {
        id(e.tensor)
        for e in named_tensors(model)
        if not torch.equal(e.tensor, before[id(e.tensor)])
    }
    assert step.changed <= changed
    assert changed <= step.changed | set(step.undecided)
    assert id(model[2].weight) in step.undecided


def test_a_parameter_in_no_group_stays() -> None:
    model = net()
    found = compared(model, lambda m: torch.optim.SGD(m[4].parameters(), lr=0.1), batch(), squared)
    assert found.wrong == set()
    assert "0.weight" not in found.predicted
    assert id(model[0].weight) in found.step.reached


def test_fused_on_the_meta_device() -> None:
    model = net()
    with torch.device("meta"):
        copy = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    optimizer = torch.optim.AdamW(copy.parameters())
    optimizer.param_groups[0]["fused"] = True
    step = predict(copy, optimizer, without_data(batch()), squared, train=True)
    assert id(copy[2].weight) in step.changed
    assert optimizer.param_groups[0]["fused"] is True
    assert really(model, None, batch(), squared, train=True)
