"""After a step in the sandbox everything is as before, however the step ended."""

from __future__ import annotations

import random
from collections import UserDict, deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.auditing.measuring.sandbox import sandbox
from frostline.errors import FrozenStateChanged
from tests.auditing.measuring.surroundings import surroundings
from tests.everything import forget_other_tests
from tests.zoo import ZOO, fresh, seeded

SMALL = ("two_branches", "mlp_bn1d", "instance_norm", "transformer", "lstm", "hf_vit", "bert")
OPTIMIZERS = {
    "SGD": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=0.1, amsgrad=True),
    "Adam foreach": lambda ps: torch.optim.Adam(ps, lr=0.1, foreach=True),
    "LBFGS": lambda ps: torch.optim.LBFGS(ps, lr=0.1, max_iter=3),
}


@pytest.fixture(autouse=True, scope="module")
def _alone() -> None:
    forget_other_tests()


class Ended(Exception):
    """Raised in the middle of a step."""


def real_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any, loss: Any) -> None:
    model.train()
    if isinstance(optimizer, torch.optim.LBFGS):

        def closure() -> Tensor:
            optimizer.zero_grad()
            value = loss(model, batch)
            value.backward()
            return value

        optimizer.step(closure)
        return
    loss(model, batch).backward()
    optimizer.step()


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("lived", [False, True], ids=["new", "lived"])
def test_a_step_leaves_nothing_behind(name: str, lived: bool) -> None:
    entry, (kind, make) = ZOO[name], list(OPTIMIZERS.items())[SMALL.index(name) % 3]
    model, batch = fresh(entry), entry.batch()
    optimizer = make(model.parameters())
    if lived:
        real_step(model, optimizer, batch, entry.loss)
    before = surroundings([model], optimizer, batch)
    with sandbox(model, optimizer, batch):
        real_step(model, optimizer, batch, entry.loss)
        assert surroundings([model], optimizer, batch) != before
    assert surroundings([model], optimizer, batch) == before, kind


def _lived(kind: str, *, lived: bool) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    entry = ZOO["mlp_bn1d"]
    model, batch = fresh(entry), entry.batch()
    optimizer = OPTIMIZERS[kind](model.parameters())
    with seeded(1):
        if lived:
            real_step(model, optimizer, batch, entry.loss)
    return model, optimizer, batch


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("lived", [False, True], ids=["new", "lived"])
def test_state_of_an_optimizer(kind: str, lived: bool) -> None:
    loss = ZOO["mlp_bn1d"].loss
    model, optimizer, batch = _lived(kind, lived=lived)
    other, its_optimizer, _ = _lived(kind, lived=lived)
    before = surroundings([model], optimizer, batch)
    with sandbox(model, optimizer, batch):
        for _ in range(2):
            real_step(model, optimizer, batch, loss)
    assert surroundings([model], optimizer, batch) == before
    # And it goes on as one that was never there.
    for each, its in ((model, optimizer), (other, its_optimizer)):
        with seeded(2):
            real_step(each, its, batch, loss)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


class Restless(nn.Module):
    """Changes whatever a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.layer = nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("short", torch.ones(4), persistent=False)
        self.steps, self.outputs, self.cache = 0, [torch.zeros(1)], {"a": torch.zeros(1)}
        self.queue, self.nested = deque([torch.zeros(2)], maxlen=3), {"list": [torch.ones(3)]}
        self.plain = torch.ones(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.add_(1))
        self.count += 1
        self.count = self.count * 1.5
        self.short.resize_(2)
        self.layer.weight.data = self.layer.weight.data.sign()
        self.layer.bias.detach().numpy()[:] = 5
        self.steps += 1
        self.outputs.append(x)
        self.outputs[0].add_(1)
        self.cache["b"] = self.last = x
        self.queue.append(x)
        self.queue[0].add_(1)
        self.nested["list"][0].mul_(3)
        self.nested["list"].append(x)
        self.plain.mul_(2)
        self.layer.register_forward_hook(lambda *_: None)
        self.norm.eval()
        random.random()
        np.random.random()
        return self.layer(torch.dropout(x, 0.5, True))


class _Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        raise Ended("in the backward")


def _end_in(end: str, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Tensor) -> None:
    output = model(batch)
    if end == "forward":
        raise Ended
    loss = (_Raising.apply(output) if end == "backward" else output).sum()
    loss.backward()
    optimizer.step()
    if end == "step":
        raise Ended


@pytest.mark.parametrize("end", ["no", "forward", "backward", "step"])
def test_a_step_that_changes_everything(end: str) -> None:
    model, batch = Restless(), torch.randn(3, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    model(batch.clone()).sum().backward()
    optimizer.step()
    before = surroundings([model], optimizer, batch)
    with suppress(Ended), sandbox(model, optimizer, batch):
        _end_in(end, model, optimizer, batch)
    assert surroundings([model], optimizer, batch) == before


@pytest.mark.parametrize("how", ["flags", "held"])
def test_a_live_guard_hears_nothing(how: str) -> None:
    entry = ZOO["two_branches"]
    model, batch = fresh(entry), entry.batch()
    if how == "held":
        fl.freeze(model, "trunk")
    else:
        model.trunk.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.parameters())
    with fl.guard(model, "trunk") as guard:
        entry.loss(model, batch).backward()
        optimizer.step()
        for _ in range(2):
            with sandbox(model, optimizer, batch):
                real_step(model, optimizer, batch, entry.loss)
        entry.loss(model, batch).backward()
        optimizer.step()
    assert guard.report.ok
    assert guard.report.steps == 2


def test_a_guard_that_pinpoints_accuses_nobody() -> None:
    entry = ZOO["mlp_bn1d"]
    model, batch = fresh(entry), entry.batch()
    model.backbone.requires_grad_(False).eval()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1)
    with fl.guard(model, "backbone", pinpoint=True, on_change="warn") as guard:
        with sandbox(model, optimizer, batch):
            real_step(model, optimizer, batch, entry.loss)
        with torch.no_grad():
            next(model.backbone.buffers()).add_(1)  # the culprit
        with pytest.warns(fl.errors.FrostlineWarning):
            optimizer.step()
    (change,) = guard.report.changes
    line = int(str(change.culprit).rpartition(":")[2])
    assert "the culprit" in Path(__file__).read_text().splitlines()[line - 1]


def test_ignored_calls_are_the_users() -> None:
    model = fresh(ZOO["mlp_bn1d"])
    part = fl.freeze(model, "backbone")
    model.train()
    told = str(part)
    with sandbox(model):
        model.train()
        model.train()
    assert str(part) == told


class Watchful(nn.Module):
    """No class that anybody knows, with a buffer: its first forward under a hold is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return self.layer(x)


def test_a_first_forward_is_compared_inside_and_once_more_after() -> None:
    model, batch = nn.Sequential(Watchful(), nn.Linear(4, 1)), torch.rand(5, 4)
    fl.freeze(model, "0")
    before = surroundings([model], None, batch)
    with pytest.raises(FrozenStateChanged), sandbox(model, None, batch):
        model(batch)
    assert surroundings([model], None, batch) == before
    with pytest.raises(FrozenStateChanged):
        model(batch)


def test_the_class_of_a_watched_module() -> None:
    class Quiet(Watchful):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    model = nn.Sequential(Quiet(), nn.Linear(4, 1))
    fl.freeze(model, "0")
    cls = type(model[0])
    with sandbox(model):
        model(torch.rand(5, 4))
        assert type(model[0]) is not cls
    assert type(model[0]) is cls


def test_schedulers_do_not_notice() -> None:
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    own, kept = dict(vars(optimizer)), dict(vars(scheduler))
    with sandbox(model, optimizer):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        assert vars(optimizer) != own
    assert vars(optimizer) == own
    assert vars(scheduler) == kept
    with pytest.warns(UserWarning, match="before"):
        scheduler.step()  # torch still knows that no step was taken


class Sharpness(torch.optim.Optimizer):
    """An optimizer around another, as sharpness-aware minimisation has it."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"rho": 0.1})
        self.base = torch.optim.Adam(self.param_groups)
        self.param_groups = self.base.param_groups
        self.average, self.count = torch.zeros(3), 0

    def step(self, closure: Any = None) -> None:
        self.count += 1
        self.average += 1
        self.base.step()


def test_an_optimizer_in_an_optimizer() -> None:
    model, batch = nn.Linear(2, 1), torch.ones(3, 2)
    optimizer = Sharpness(model.parameters())
    before = surroundings([model], optimizer, batch), surroundings([], optimizer.base, batch)
    with sandbox(model, optimizer, batch):
        model(batch).sum().backward()
        optimizer.step()
        assert optimizer.base.state
    assert (surroundings([model], optimizer, batch), surroundings([], optimizer.base, batch)) == (
        before
    )


def test_a_teacher_and_parameters_of_others() -> None:
    model, teacher = fresh(ZOO["mlp_bn1d"]), fresh(ZOO["mlp_bn1d"])
    other = nn.Linear(3, 3)
    batch = ZOO["mlp_bn1d"].batch()
    optimizer = torch.optim.Adam([*model.parameters(), *other.parameters()])
    before = surroundings([model, teacher, other], optimizer, batch)
    with sandbox(model, optimizer, batch, beside=[teacher]):
        loss = (model(batch[0]) - teacher.train()(batch[0])).square().sum()
        (loss + other(torch.ones(1, 3)).sum()).backward()
        optimizer.step()
    assert surroundings([model, teacher, other], optimizer, batch) == before


def test_a_batch_that_is_taken_apart() -> None:
    batch = UserDict({"x": torch.ones(3, 2, requires_grad=True), "more": [torch.zeros(2)]})
    plain: dict[str, Any] = {"labels": torch.ones(3), "sizes": [(1, 2)]}
    model = nn.Linear(2, 1)
    before = [surroundings([], None, b) for b in (batch, plain)]
    for each in (batch, plain):
        with sandbox(model, None, each):
            for key in list(each):
                each.pop(key)
            each["new"] = 1
    with sandbox(model, None, batch):
        batch["x"].sum().backward()
        batch["more"][0].add_(1)
        batch["more"].append(torch.zeros(1))
    assert [surroundings([], None, b) for b in (batch, plain)] == before
    assert batch["x"].grad is None


@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "none"])
@pytest.mark.parametrize("mode", ["no_grad", "inference_mode", "plain"])
def test_gradients_are_recorded_in_any_mode(mode: str, gradients: bool) -> None:
    model = nn.Linear(2, 1)
    if gradients:
        model(torch.ones(1, 2)).sum().backward()
    around = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(
        mode, torch.enable_grad
    )
    with around():
        before = surroundings([model], None, None)
        with sandbox(model):
            model(torch.ones(1, 2)).sum().backward()
            assert model.weight.grad is not None
        assert surroundings([model], None, None) == before


def test_a_graph_from_before_can_still_go_backward() -> None:
    entry = ZOO["mlp_bn1d"]
    model, batch = fresh(entry), entry.batch()
    optimizer = torch.optim.AdamW(model.parameters())
    loss = entry.loss(model, batch)
    with sandbox(model, optimizer, batch):
        real_step(model, optimizer, batch, entry.loss)
    loss.backward()
    assert next(model.parameters()).grad is not None


def test_tied_tensors_are_copied_once() -> None:
    embedding = nn.Embedding(5, 4)
    head = nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head)
    model.listed = [embedding.weight, torch.zeros(2)]
    with sandbox(model) as copies:
        assert set(copies) == {id(embedding.weight), id(model.listed[1])}
