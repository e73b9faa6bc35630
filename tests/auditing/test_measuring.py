"""What a step is said to change, against the slow obvious way: copy all, step, compare bytes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

import frostline as fl
from frostline._names import named_tensors
from frostline.auditing.measuring import measure
from frostline.auditing.step import Step
from frostline.errors import BatchError
from tests.auditing.surroundings import surroundings
from tests.everything import bits, forget_other_tests
from tests.zoo import ZOO, fresh, live, seeded

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


def names(model: nn.Module, keys: Any) -> set[str]:
    return {entry.name for entry in named_tensors(model) if id(entry.tensor) in keys}


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

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def net(momentum: float | None = 0.1) -> nn.Sequential:
    with seeded(0):
        norm = nn.BatchNorm1d(4, momentum=momentum)
        return live(nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 2)))


def changed(model: nn.Module, optimizer: Optimizer | None = None, **given: Any) -> set[str]:
    train, loss = given.get("train", False), given.get("loss")
    batch = given.get("batch", X)
    return names(model, measure(model, optimizer, batch, loss, train=train).changed)


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


# --- every way to write ------------------------------------------------------------------------


class Writes(nn.Module):
    """Writes to a buffer in one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(4, 4), how
        self.register_buffer("kept", torch.tensor([1.0, 2.0, float("nan"), 0.0]))
        self.plain = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        WRITES[self.how](self)
        return self.layer(x)


def _give(module: Any, name: str, value: Any) -> None:
    setattr(module, name, value)


WRITES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda m: None,
    "in place": lambda m: m.kept.add_(1),
    "same bytes": lambda m: m.kept.copy_(m.kept.clone()),
    "other object, same bytes": lambda m: _give(m, "kept", m.kept.clone()),
    "other object": lambda m: _give(m, "kept", m.kept + 1),
    "data": lambda m: _give(m.kept, "data", m.kept.data + 1),
    "data, same bytes": lambda m: _give(m.kept, "data", m.kept.data.clone()),
    "resized": lambda m: m.kept.resize_(2),
    "other dtype": lambda m: _give(m, "kept", m.kept.double()),
    "gone": lambda m: _give(m, "kept", None),
    "numpy": lambda m: m.kept.numpy().fill(5),
    "storage": lambda m: m.kept.untyped_storage().fill_(1),
    "sign of zero": lambda m: m.kept[3:].neg_(),
    "not a number": lambda m: m.kept.fill_(float("nan")),
    "put back": lambda m: m.kept.add_(1).sub_(1),
    "other parameter": lambda m: _give(
        m.layer, "weight", nn.Parameter(m.layer.weight.detach() + 1)
    ),
    "plain attribute": lambda m: _give(m, "plain", m.plain + 1),
}


ONE = {"kept"}
WAYS = {
    "nothing": set(), "in place": ONE, "same bytes": set(), "other object, same bytes": set(),
    "other object": ONE, "data": ONE, "data, same bytes": set(), "resized": ONE,
    "other dtype": ONE, "gone": ONE, "numpy": ONE, "storage": ONE, "sign of zero": ONE,
    "not a number": ONE,
    "put back": set(), "other parameter": {"layer.weight"}, "plain attribute": {"plain"},
}  # fmt: skip


@pytest.mark.parametrize("how", WRITES)
def test_every_way_to_write(how: str) -> None:
    model = Writes(how)
    before = surroundings([model], None, X)
    assert changed(model) == WAYS[how]
    assert surroundings([model], None, X) == before


def test_drift_is_the_largest_difference() -> None:
    model, other = net(), net()
    optimizer, its = (torch.optim.Adam(each.parameters(), lr=0.3) for each in (model, other))
    step = measure(model, optimizer, X, None, train=False)
    old = deepcopy(dict(other.state_dict()))
    other(X).mean().backward()
    its.step()
    new = other.state_dict()
    for entry in named_tensors(model):
        largest = (new[entry.name].double() - old[entry.name].double()).abs().max().item()
        assert step.drift.get(id(entry.tensor), 0.0) == largest


@pytest.mark.parametrize(
    ("how", "drift"),
    [("resized", []), ("gone", []), ("not a number", []), ("sign of zero", [0.0]),
     ("other dtype", [0.0]), ("in place", [1.0])],
)  # fmt: skip
def test_drift_where_there_is_a_number(how: str, drift: list[float]) -> None:
    step = measure(Writes(how), None, X, None, train=False)
    assert list(step.drift.values()) == drift
    assert len(step.changed) == 1


# --- how it is run -----------------------------------------------------------------------------


def test_a_dict_and_a_loss_of_the_model() -> None:
    entry = ZOO["bert"]
    model = fresh(entry)
    optimizer = torch.optim.SGD(model.classifier.parameters(), lr=0.1)
    step = measure(model, optimizer, entry.batch(), None, train=False)
    assert names(model, step.changed) == {"classifier.weight", "classifier.bias"}
    assert step.loss == "the loss of model(**batch)"


def test_a_teacher_beside() -> None:
    model, teacher = net(), net()
    before = surroundings([model, teacher], None, X)

    def distil(model: nn.Module, batch: Tensor) -> Tensor:
        return F.mse_loss(model(batch), teacher.train()(batch).detach())

    step = measure(model, None, X, distil, train=False)
    assert len(step.changed) == 3
    assert surroundings([model, teacher], None, X) == before


def _adversarial(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).mean() - model(batch.flip(0)).mean()


def test_norms_are_counted() -> None:
    model = net()
    assert measure(model, None, X, None, train=False).calls == {id(model[1]): 1}
    assert measure(model, None, X, _adversarial, train=False).calls == {id(model[1]): 2}
    assert measure(model.eval(), None, X, _adversarial, train=False).calls == {}
    fl.freeze(model, "1")
    assert measure(model, None, X, None, train=True).calls == {}


def test_a_loss_that_needs_no_gradient() -> None:
    model = net().requires_grad_(False)
    step = measure(model, torch.optim.SGD(model.parameters(), lr=0.1), X, None, train=False)
    assert step.reached == frozenset()
    assert not step.raised
    assert len(step.changed) == 3


def test_an_optimizer_that_asks_for_a_closure() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
    step = measure(model, optimizer, X, lambda model, x: model(x).square().mean(), train=False)
    assert step.reached == {id(p) for p in model.parameters()}
    assert id(model[2].weight) in step.changed
    assert step.calls[id(model[1])] == 3
    assert not step.raised


def test_an_optimizer_in_the_backward() -> None:
    model = net().eval()
    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=0.1)

        def hook(p: Tensor, optimizer: Optimizer = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        parameter.register_post_accumulate_grad_hook(hook)
    step = measure(model, None, X, None, train=False)
    assert len(step.changed) == len(list(model.parameters()))
    assert step.reached == step.changed


class Skipping(nn.Module):
    """Half of its layers are left out at random."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand(()) < 0.5
        return self.layers[2](self.layers[0](x) if kept else self.layers[1](x))


def test_layers_left_out_at_random_are_reached() -> None:
    model = Skipping()
    reached = []
    for seed in range(4):
        torch.manual_seed(seed)
        step = measure(model, None, X, None, train=False)
        reached.append(len(step.reached or ()))
    assert reached == [6, 6, 6, 6]


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused, self.dropout = nn.Linear(4, 4), nn.Linear(4, 4), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.used(x))


def test_a_layer_that_is_not_used_is_not_reached() -> None:
    model = Unused()
    step = measure(model, None, X, None, train=False)
    assert names(model, step.reached) == {"used.weight", "used.bias"}


# --- errors ------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit() -> None:
    model = net()
    before = surroundings([model], None, X)
    with pytest.raises(BatchError, match=r"model\(batch\) raised RuntimeError"):
        measure(model, None, torch.zeros(2, 9), None, train=False)
    with pytest.raises(BatchError, match=r"compute_loss\(model, batch\) raised KeyError"):
        measure(model, None, X, lambda model, batch: {}["loss"], train=False)
    assert surroundings([model], None, X) == before


def test_one_value_per_channel_is_told() -> None:
    model = net()
    before = surroundings([model], None, X)
    step = measure(model, None, X[:1], None, train=False)
    assert step.raised.startswith("the forward raised ValueError in '1': Expected more than 1")
    assert names(model, step.changed) == {"1.num_batches_tracked"}
    assert surroundings([model], None, X) == before


class Asks(nn.Module):
    """Needs targets in training mode, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
        if self.training and targets is None:
            raise ValueError("targets should not be None in training mode")
        return self.layer(x)


def test_a_forward_that_only_fails_after_train_is_told() -> None:
    model = Asks()
    with pytest.raises(BatchError, match="targets should not be None"):
        measure(model, None, X, None, train=False)
    model.eval()
    assert not measure(model, None, X, None, train=False).raised
    step = measure(model, None, X, None, train=True)
    assert step.raised == (
        "the forward raised ValueError in '': targets should not be None in training mode"
    )


class Spoils(nn.Module):
    """Writes to what the backward needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).exp()
        z = y.square().sum()
        with torch.no_grad():
            y.add_(1)
        return z


def test_an_error_in_the_backward_is_told() -> None:
    model = Spoils()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = surroundings([model], optimizer, X)
    step = measure(model, optimizer, X, None, train=False)
    assert step.raised.startswith("backward raised RuntimeError: one of the variables needed")
    assert step.changed == frozenset()
    assert surroundings([model], optimizer, X) == before


class Demands(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        super().step()
        raise RuntimeError("every parameter needs a gradient")


def test_an_error_in_the_step_is_told() -> None:
    model = net().eval()
    optimizer = Demands(model.parameters(), lr=0.1)
    before = surroundings([model], optimizer, X)
    step = measure(model, optimizer, X, None, train=False)
    assert step.raised == "optimizer.step() raised RuntimeError: every parameter needs a gradient"
    assert len(step.changed) == 6
    assert surroundings([model], optimizer, X) == before


def test_lbfgs_over_what_is_held_is_refused_as_in_the_real_step() -> None:
    model = net()
    fl.freeze(model, "0")
    optimizer = torch.optim.LBFGS(model.parameters())
    step = measure(model, optimizer, X, None, train=False)
    assert step.raised.startswith("optimizer.step() raised FreezeError: LBFGS writes")


class Watchful(nn.Module):
    """No class that anybody knows: its first forward under a hold is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return self.layer(x)


def test_what_a_hold_refuses_does_not_change() -> None:
    model = nn.Sequential(Watchful(), nn.Linear(4, 1))
    assert "0.seen" in changed(model)
    fl.freeze(model, "0")
    step = measure(model, None, X, None, train=False)
    assert step.changed == frozenset()
    assert "FrozenStateChanged" in step.raised
    assert "0.seen" in step.raised


def test_an_interrupt_passes_and_all_is_put_back() -> None:
    model = net()

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        model(batch)
        raise KeyboardInterrupt

    before = surroundings([model], None, X)
    with pytest.raises(KeyboardInterrupt):
        measure(model, None, X, loss, train=False)
    assert surroundings([model], None, X) == before


# --- who wrote it ------------------------------------------------------------------------------


def writer(step: Step, tensor: Tensor) -> str:
    return step.writers[id(tensor)]


def test_writers_are_named() -> None:
    model = net()
    step = measure(model, torch.optim.AdamW(model.parameters()), X, None, train=False)
    assert writer(step, model[1].running_mean) == "native_batch_norm in 1"
    assert writer(step, model[1].num_batches_tracked) == "add_ in 1"
    assert writer(step, model[0].weight) == "AdamW.step"


def test_a_writer_in_a_hook_of_the_optimizer() -> None:
    model = net().eval()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)

    def shrink(*_: Any) -> None:
        model[0].weight.data.mul_(0.5)

    optimizer.register_step_post_hook(shrink)
    step = measure(model, optimizer, X, None, train=False)
    assert writer(step, model[0].weight) == "mul_ in optimizer.step()"


class Recomputed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=False))


def test_a_writer_that_runs_again() -> None:
    model = Recomputed()
    step = measure(model, None, X, None, train=False)
    assert step.calls == {id(model.block[1]): 2}
    assert writer(step, model.block[1].running_mean) == (
        "native_batch_norm in block.1, native_batch_norm in block.1, in the backward"
    )


def test_no_writer_where_nothing_was_seen() -> None:
    model = Writes("numpy")
    step = measure(model, None, X, None, train=False)
    assert writer(step, model.kept) == ""
