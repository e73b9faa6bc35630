"""Preflight: what may change a frozen tensor, found before the first step, with near misses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, AdamW, Optimizer

import frostline as fl
from frostline.guarding.preflight import of_models, of_optimizer
from frostline.guarding.target import resolve
from tests.zoo import live


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *[nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for _ in "abc"]
        )
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def net(*, flagged: bool = True) -> Net:
    model = live(Net()).train()
    if flagged:
        model.body.requires_grad_(False)
    return model


def with_gradients(model: Net) -> Net:
    model.body.requires_grad_(True)
    model(torch.randn(4, 3)).sum().backward()
    model.body.requires_grad_(False)
    return model


def told(target) -> dict[str, str]:
    return {finding.name: finding.what for finding in of_models(target)}


# --- norms --------------------------------------------------------------------------------


def test_norms_in_training_mode() -> None:
    found = told(resolve(net()))
    assert list(found) == ["body.{0-2}.1"]
    assert found["body.{0-2}.1"].startswith("3 norms in training mode: every forward writes")


def some_in_eval(model: Net) -> object:
    model.body[1].eval()
    model.body[2].eval()
    return resolve(model)


def test_only_those_in_training_mode_are_named() -> None:
    assert list(told(some_in_eval(net()))) == ["body.0.1"]


def all_in_eval(model: Net) -> object:
    model.body.eval()
    return resolve(model)


def held(model: Net) -> object:
    fl.freeze(model, "body")
    return resolve(model.train())


def held_in_follow_mode(model: Net) -> object:
    fl.freeze(model, "body", mode="follow")
    return resolve(model.train())


def held_by_the_batch(model: Net) -> object:
    fl.freeze(model, "body", stats="batch")
    return resolve(model.train())


def asked_to_update(model: Net) -> object:
    fl.freeze(model, "body", stats="update")
    return resolve(model.train())


def statistics_not_watched(model: Net) -> object:
    return resolve(model, ["body.*.1.weight", "body.*.1.bias", "body.*.0"])


def without_statistics(model: Net) -> object:
    for block in model.body:
        block[1] = nn.LayerNorm(3).requires_grad_(False)
    return resolve(model)


def norm_outside(model: Net) -> object:
    model.head = nn.BatchNorm1d(3)
    model.body.eval()
    return resolve(model)


@pytest.mark.parametrize(
    "near_miss",
    [
        all_in_eval,
        held,
        held_in_follow_mode,
        held_by_the_batch,
        asked_to_update,
        statistics_not_watched,
        without_statistics,
        norm_outside,
    ],
)
def test_near_misses_of_norms(near_miss) -> None:
    model = net()
    assert told(near_miss(model)) == {}


def test_a_norm_without_counter_and_with_momentum_zero_writes_too() -> None:
    for norm in (nn.InstanceNorm1d(3, track_running_stats=True, affine=True), nn.BatchNorm1d(3)):
        norm.momentum = 0.0
        model = nn.Sequential(norm.requires_grad_(False).train())
        assert list(told(resolve(model))) == ["0"]


# --- modules that write to themselves -----------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_modules_that_write_in_every_mode() -> None:
    from torch.ao.quantization import MinMaxObserver

    model = nn.ModuleDict(
        {
            "table": nn.Embedding(4, 3, max_norm=1.0),
            "bag": nn.EmbeddingBag(4, 3, max_norm=1.0),
            "range": MinMaxObserver(),
            "plain": nn.Embedding(4, 3),
        }
    )
    model.requires_grad_(False).eval()
    target = resolve(model, ["table", "bag", "range", "plain"])
    assert sorted(told(target)) == ["bag", "range", "table"]
    fl.freeze(model, mode="follow")
    assert told(resolve(model)) == {}


class Queue(nn.Module):
    """A codebook as people write it, which no registry knows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(4, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.rows.mul_(0.9).add_(x.detach().mean(0))
        return x


def test_modules_that_write_in_training_mode() -> None:
    model = nn.ModuleDict(
        {
            "new": nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
            "old": nn.utils.spectral_norm(nn.Linear(3, 3)),
            "queue": Queue(),
        }
    ).requires_grad_(False)
    found = told(resolve(model, ["new", "old", "queue"]))
    assert list(found) == ["new.parametrizations.weight.0", "old", "queue"]
    assert found["old"] == "1 module that writes to itself in training mode"
    assert "may write to itself, by the code, in training mode" in found["queue"]
    assert told(resolve(model.eval(), ["new", "old", "queue"])) == {}


# --- gradients that are left --------------------------------------------------------------


def test_gradients_from_before_are_named_completely() -> None:
    model = with_gradients(net())
    model.body.eval()
    found = told(resolve(model))
    assert sorted(found) == ["body.{0-2}.{0-1}.bias", "body.{0-2}.{0-1}.weight"]
    assert all("gradient from before" in what for what in found.values())


def test_near_misses_of_gradients() -> None:
    model = with_gradients(net())
    model.body.eval()
    model.body.zero_grad()
    assert told(resolve(model)) == {}, "the gradients of the head are no finding"
    model = with_gradients(net())
    fl.freeze(model, "body")
    assert told(resolve(model)) == {}, "freezing clears them"
    trainable = net(flagged=False).eval()
    trainable(torch.randn(4, 3)).sum().backward()
    assert told(resolve(trainable, "body")) == {}, "trainable on purpose, so it has gradients"


# --- memory -------------------------------------------------------------------------------


class Views(nn.Module):
    """Two tensors over one memory."""

    def __init__(self, frozen: slice, free: slice) -> None:
        super().__init__()
        flat = torch.randn(20)
        self.frozen = nn.ParameterList([nn.Parameter(flat[frozen], requires_grad=False)])
        self.free = nn.ParameterList([nn.Parameter(flat[free])])


def test_shared_memory_and_its_near_miss() -> None:
    assert told(resolve(Views(slice(0, 10), slice(10, 20)))) == {}
    found = told(resolve(Views(slice(0, 11), slice(10, 20))))
    assert list(found) == ["frozen.0"]
    assert "shares bytes with free.0, which is not frozen" in found["frozen.0"]


def test_tied_weights_are_no_shared_memory() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    model["b"].weight = model["a"].weight
    model.requires_grad_(False)
    assert told(resolve(model)) == {}


@pytest.mark.parametrize("first", [0, 1])
def test_shared_memory_of_two_models_of_one_class(first) -> None:
    good, bad = Views(slice(0, 10), slice(10, 20)), Views(slice(0, 11), slice(10, 20))
    models = [good, bad] if first else [bad, good]
    found = told(resolve(models))
    assert list(found) == [f"Views[{first}].frozen.0"]
    assert f"shares bytes with Views[{first}].free.0" in found[f"Views[{first}].frozen.0"]


def test_memory_shared_across_models() -> None:
    teacher, student = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3)
    student.weight.data = teacher.weight.data
    student.bias.requires_grad_(False)
    found = told(resolve([fl.freeze(teacher), fl.freeze(student, "bias")]))
    assert list(found) == ["Linear[0].weight"]
    assert "Linear[1].weight" in found["Linear[0].weight"]


# --- optimizers ---------------------------------------------------------------------------


def groups_of(model: Net) -> list[dict]:
    return [
        {"params": list(model.head.parameters()), "weight_decay": 0.5},
        {"params": list(model.body.parameters()), "weight_decay": 0.1},
    ]


def test_frozen_parameters_with_gradients_in_a_group() -> None:
    model = with_gradients(net())
    optimizer = SGD(groups_of(model), lr=0.1, momentum=0.9)
    found = of_optimizer(resolve(model), optimizer)
    assert [f.name for f in found] == ["body.{0-2}.{0-1}.weight", "body.{0-2}.{0-1}.bias"]
    assert all(
        f.what == "is in a group of SGD and has .grad, so the step will write to it "
        "(weight_decay=0.1, momentum=0.9)"
        for f in found
    )


def test_each_pattern_is_told_with_the_options_of_its_own_group() -> None:
    model = with_gradients(net())
    biases = [p for n, p in model.body.named_parameters() if n.endswith("bias")]
    weights = [p for n, p in model.body.named_parameters() if n.endswith("weight")]
    optimizer = SGD([{"params": weights, "weight_decay": 0.25}, {"params": biases}], lr=0.1)
    found = {f.name: f.what for f in of_optimizer(resolve(model), optimizer)}
    assert found["body.{0-2}.{0-1}.weight"].endswith("write to it (weight_decay=0.25)")
    assert found["body.{0-2}.{0-1}.bias"].endswith("write to it")


def test_lbfgs_writes_to_all_it_was_given() -> None:
    model = net()
    found = of_optimizer(resolve(model), LBFGS(model.parameters()))
    assert len(found) == 2
    assert all("LBFGS writes to all it was given" in f.what for f in found)
    assert of_optimizer(resolve(model), LBFGS(model.head.parameters())) == []


def without_gradients(model: Net) -> Optimizer:
    return AdamW(model.parameters(), lr=0.1, weight_decay=0.1)


def of_the_head(model: Net) -> Optimizer:
    with_gradients(model)
    return AdamW(model.head.parameters(), lr=0.1)


def after_a_freeze(model: Net) -> Optimizer:
    optimizer = AdamW(model.parameters(), lr=0.1)
    with_gradients(model)
    fl.freeze(model, "body")
    return optimizer


def of_another_model(model: Net) -> Optimizer:
    with_gradients(model)
    other = with_gradients(net())
    return AdamW(other.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "near_miss", [without_gradients, of_the_head, after_a_freeze, of_another_model]
)
def test_near_misses_of_optimizers(near_miss: Callable[[Net], Optimizer]) -> None:
    model = net()
    optimizer = near_miss(model)
    assert of_optimizer(resolve(model), optimizer) == []


def test_what_is_said_comes_true() -> None:
    """The slow way: take the step, and see which of them moved."""
    for make in (with_gradients, lambda model: model):
        model = make(net())
        target = resolve(model, "body")
        optimizer = AdamW(model.parameters(), lr=0.1)
        found = of_optimizer(target, optimizer)
        before = {w.name: w.tensor.clone() for w in target.tensors}
        optimizer.step()
        moved = {w.name for w in target.tensors if not torch.equal(w.tensor, before[w.name])}
        assert bool(found) is bool(moved)
        assert len(moved) in (0, 12)


def test_looking_changes_nothing() -> None:
    model = with_gradients(net())
    before = [(p, p._version, p.grad, p.requires_grad) for p in model.parameters()]
    modes = [m.training for m in model.modules()]
    of_models(resolve(model))
    of_optimizer(resolve(model), SGD(model.parameters(), lr=0.1))
    after = [(p, p._version, p.grad, p.requires_grad) for p in model.parameters()]
    assert all(a[1:2] + a[3:] == b[1:2] + b[3:] for a, b in zip(before, after, strict=True))
    assert all(a[2] is b[2] for a, b in zip(before, after, strict=True))
    assert [m.training for m in model.modules()] == modes
