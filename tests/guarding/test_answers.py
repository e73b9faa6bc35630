# ruff: noqa: PT012  (what is guarded is a block, and the test is where in it the alarm comes)
"""The four answers: raise, warn, restore, rewind; what is bit-identical after each."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import frostline as fl
from frostline.errors import FrozenStateChanged
from tests.guarding import loops
from tests.guarding.deeds import DEEDS, there_and_back
from tests.guarding.loops import (
    ENTRY,
    backbone_bits,
    contents,
    flagged,
    frozen,
    head_optimizer,
    model_of,
    nudge,
    state_bits,
    told,
    train,
    without_guard,
)

# --- raise -------------------------------------------------------------------------------------


def test_raise_logs_first_and_after_the_optimizer_is_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    with (
        caplog.at_level(logging.ERROR, "frostline"),
        pytest.raises(FrozenStateChanged) as caught,
        fl.guard(model) as guard,
    ):
        train(model, optimizer, 5, {2: nudge})
    error = caught.value
    assert [record.getMessage() for record in caplog.records] == [str(error)]
    assert caplog.records[0].name == "frostline"
    assert error.report is guard.report
    assert [(c.name, c.step, c.severity) for c in error.changes] == [
        ("backbone.0.weight", 2, "drift")
    ]
    # Two whole steps, the optimizer's state included: whoever catches it may go on.
    unattacked, twin = model_of(), None
    unattacked.backbone.requires_grad_(False).eval()
    twin = head_optimizer(unattacked)
    train(unattacked, twin, 2, {2: nudge})
    assert contents(model) == contents(unattacked)
    assert state_bits(optimizer) == state_bits(twin)


def test_raise_tells_at_the_exit_what_no_step_saw() -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(part):
        train(model, head_optimizer(model), 2)
        nudge(model)
    assert caught.value.changes[0].step == 2
    assert not caught.value.report.ok


# --- warn --------------------------------------------------------------------------------------


def test_warn_tells_a_tensor_once_at_the_line_of_the_user() -> None:
    model, part = frozen()
    with told() as caught, fl.guard(part, on_change="warn") as guard:
        train(model, head_optimizer(model), 4, {2: nudge, 3: nudge, 4: nudge_bias})
    assert [str(w.message).splitlines()[2].split()[0] for w in caught] == [
        "backbone.0.weight",
        "backbone.0.bias",
    ]
    assert {w.filename for w in caught} == {loops.__file__}
    assert [(c.name, c.step) for c in guard.report.changes] == [
        ("backbone.0.weight", 2),
        ("backbone.0.bias", 4),
    ]
    assert not guard.report.ok


def nudge_bias(model: nn.Module) -> None:
    model.backbone[0].bias.data.mul_(1.5)


# --- restore: every way to change a tensor -----------------------------------------------------


@pytest.mark.parametrize("deed", DEEDS)
@pytest.mark.parametrize("proof", ["auto", "content"])
def test_restore_brings_the_frozen_bytes_back(deed: loops.Deed, proof: str) -> None:
    model = flagged()
    before = backbone_bits(model)
    optimizer = head_optimizer(model)
    with told() as caught, fl.guard(model, on_change="restore", proof=proof) as guard:
        train(model, optimizer, 1)
        deed(model)
        assert backbone_bits(model) != before or deed is there_and_back
        train(model, optimizer, 1)
        if proof == "auto":
            assert backbone_bits(model) == before
        train(model, optimizer, 2)
    assert backbone_bits(model) == before
    assert caught
    assert "The frozen bytes were put back" in str(caught[-1].message)
    assert not any(p.requires_grad for p in model.backbone.parameters())
    assert all(p.requires_grad for p in model.head.parameters())
    assert guard.report.changes
    # What was put back is watched on.
    with told(), fl.guard(model, on_change="restore"):
        nudge(model)
    assert backbone_bits(model) == before


def test_restore_warns_again_when_the_same_tensor_is_written_again() -> None:
    model = flagged()
    before = backbone_bits(model)
    with told() as caught, fl.guard(model, on_change="restore") as guard:
        train(model, head_optimizer(model), 4, {2: nudge, 4: nudge})
    # The report has each tensor once, with its first step; how often is said by the windows.
    assert [c.step for c in guard.report.changes] == [2]
    assert len(caught) == len(guard.report.windows) == 2
    assert [window.split()[:2] for window in guard.report.windows] == [["step", "2"], ["step", "4"]]
    assert backbone_bits(model) == before


def other_module(model: nn.Module) -> None:
    model.backbone[0] = nn.Linear(12, 16).requires_grad_(False)


def test_restore_into_another_module() -> None:
    model = flagged()
    before = backbone_bits(model)
    with told(), fl.guard(model, on_change="restore"):
        train(model, head_optimizer(model), 2, {2: other_module})
    assert backbone_bits(model) == before


@pytest.mark.parametrize(
    ("deed", "name"),
    [
        (lambda m: m.backbone.__setitem__(3, nn.Identity()), "backbone.3.weight"),
        (lambda m: m.backbone[0].register_parameter("bias", None), "backbone.0.bias"),
    ],
    ids=["module", "parameter"],
)
def test_what_is_gone_cannot_be_put_back(deed: loops.Deed, name: str) -> None:
    model = flagged()
    with (
        pytest.raises(FrozenStateChanged, match=f"{name} could not be put back") as caught,
        fl.guard(model, on_change="restore"),
    ):
        train(model, head_optimizer(model), 2, {2: deed})
    assert name in [c.name for c in caught.value.changes]


# --- restore: what trains on -------------------------------------------------------------------

Attack = Callable[[nn.Module, Optimizer], None]


def stale_gradient(model: nn.Module, optimizer: Optimizer) -> None:
    for p in model.backbone.parameters():
        p.grad = torch.full_like(p, 0.3)


def zeroed_gradient(model: nn.Module, optimizer: Optimizer) -> None:
    for p in model.backbone.parameters():
        p.grad = torch.zeros_like(p)


def momentum(model: nn.Module, optimizer: Optimizer) -> None:
    for p in model.backbone.parameters():
        p.grad = torch.zeros_like(p)
        optimizer.state[p]["momentum_buffer"] = torch.ones_like(p)


def zero_gradients(optimizer: Optimizer, model: nn.Module) -> None:
    # A loop that keeps gradients as zeros, so that stale ones stay.
    for p in model.head.parameters():
        p.grad = None


def stateless_sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), 0.05)


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), 0.05, momentum=0.9)


def adam(model: nn.Module) -> Optimizer:
    return Adam(model.parameters())


def fused(model: nn.Module) -> Optimizer:
    return Adam(model.parameters(), fused=True)


def adamw(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), weight_decay=0.1)


# How the optimizer is made, what makes it write, and at which of the steps 3 and 4 it writes.
OWN = [
    (stateless_sgd, stale_gradient, (3, 4)),
    (sgd, stale_gradient, (3, 4)),
    (adam, stale_gradient, (3, 4)),
    (fused, stale_gradient, (3, 4)),
    (adamw, zeroed_gradient, (3, 4)),
    # The buffer goes with the answer at step 3, and zeros alone move nothing.
    (sgd, momentum, (3,)),
]


@pytest.mark.parametrize(("make", "attack", "steps"), OWN)
def test_the_optimizers_own_write_is_as_if_it_had_not_been(
    make: Callable[[nn.Module], Optimizer], attack: Attack, steps: tuple[int, ...]
) -> None:
    def run(attacked: bool) -> tuple[dict[str, bytes], list[dict[str, object]], list[str]]:
        model = flagged()
        optimizer = make(model)
        with told(), fl.guard(model, on_change="restore") as guard:
            for number in range(4):
                if number == 2 and attacked:
                    attack(model, optimizer)
                zero_gradients(optimizer, model)
                ENTRY.loss(model, ENTRY.batch()).backward()
                optimizer.step()
        assert bool(guard.report.changes) == attacked
        own = state_bits(optimizer, model.head.parameters())
        return contents(model), own, guard.report.windows

    attacked, clean = run(True), run(False)
    assert attacked[0] == clean[0]
    assert attacked[1] == clean[1]
    assert clean[2] == []
    for step, window in zip(steps, attacked[2], strict=True):
        assert window.startswith(f"step {step}: backbone")
        assert window.endswith("healed before a forward could read it; no step ran on it")


def test_what_a_forward_read_has_fed_the_head() -> None:
    model = flagged()
    with told(), fl.guard(model, on_change="restore") as guard:
        train(model, head_optimizer(model), 3, {2: nudge})
    unattacked, _ = without_guard(3)
    assert backbone_bits(model) == backbone_bits(unattacked)
    assert contents(model) != contents(unattacked)
    assert guard.report.windows == ["step 2 may have run on changed bytes of backbone.0.weight"]


def test_content_alone_cannot_say_that_no_step_ran_on_it() -> None:
    model = flagged()
    with told(), fl.guard(model, on_change="restore", proof="content") as guard:
        train(model, head_optimizer(model), 3, {2: nudge})
    (window,) = guard.report.windows
    assert window.endswith("may have run on changed bytes of backbone.0.weight")


def test_restore_between_forward_and_backward() -> None:
    model = flagged()
    extra = nn.Linear(12, 12)
    optimizer = SGD([*model.head.parameters(), *extra.parameters()], lr=0.1)
    before = backbone_bits(model)
    with told(), fl.guard(model, on_change="restore") as guard:
        x, y = ENTRY.batch()
        loss = nn.functional.cross_entropy(model(extra(x)), y)
        model.backbone[0].weight.data.add_(1)
        guard.check()
        loss.backward()
        optimizer.step()
    assert backbone_bits(model) == before
    assert extra.weight.grad is not None


# --- pinpoint="auto" ---------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["warn", "restore"])
def test_the_second_occurrence_gets_its_line(answer: str) -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    with told(), fl.guard(model, on_change=answer, pinpoint="auto") as guard:
        train(model, optimizer, 1)
        for _ in range(2):
            nudge(model)
            nudge_bias(model)
            train(model, optimizer, 1)
    lines = {c.name: c.culprit for c in guard.report.changes if c.culprit is not None}
    assert set(lines) == {"backbone.0.weight", "backbone.0.bias"}
    assert lines["backbone.0.weight"].endswith(f"loops.py:{_line_of(nudge, '+=')}")
    assert lines["backbone.0.bias"].endswith(f"test_answers.py:{_line_of(nudge_bias, 'mul_')}")


def _line_of(function: Callable[..., object], text: str) -> int:
    import inspect

    lines, first = inspect.getsourcelines(function)
    return first + next(n for n, line in enumerate(lines) if text in line)


def test_a_write_after_the_step_was_not_healed_by_it() -> None:
    """What was clean before a step says nothing of what is written after it."""
    model = flagged()
    with pytest.raises(ZeroDivisionError), fl.guard(model, on_change="restore") as guard:
        train(model, head_optimizer(model), 2)
        nudge(model)
        raise ZeroDivisionError
    (window,) = guard.report.windows
    assert "may have run on changed bytes" in window
