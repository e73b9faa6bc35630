# ruff: noqa: PT012  (what is guarded is a block, and the test is where in it the alarm comes)
"""A guard lets go of what is thawed: checked a last time, and what stays is watched on."""

from __future__ import annotations

import pytest
from torch import nn
from torch.optim import SGD

import frostline as fl
from frostline.errors import FrozenStateChanged
from tests.guarding.loops import (
    BACKBONE,
    ENTRY,
    flagged,
    frozen,
    head_optimizer,
    nudge,
    train,
)

# --- letting go --------------------------------------------------------------------------------


def test_unfreeze_inside() -> None:
    model, part = frozen()
    with fl.guard(part) as guard:
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        optimizer.add_param_group({"params": fl.unfreeze(model, "backbone.3")})
        train(model, optimizer, 2)
        assert guard.report.steps == 3
    assert guard.report.ok
    gone = ["backbone.3.weight", "backbone.3.bias"]
    assert guard.report.notes == [f"{name}: was thawed, and was let go" for name in gone]


def test_what_stays_is_watched_on() -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged), fl.guard(part) as guard:
        optimizer = head_optimizer(model)
        fl.unfreeze(model, "backbone.3")
        train(model, optimizer, 1)
        train(model, optimizer, 1, {1: nudge})
        pytest.fail("backbone.0 is still frozen")
    assert guard.report.changes[0].name == "backbone.0.weight"


@pytest.mark.parametrize("how", ["unfreeze", "undo", "at the exit"])
def test_what_drifted_before_it_was_let_go(how: str) -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(part):
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        nudge(model)
        if how == "undo":
            part.undo()
        else:
            assert fl.unfreeze(model, BACKBONE)
        # Letting go went through; the alarm waits for the next look.
        assert model.backbone[0].weight.requires_grad
        if how != "at the exit":
            train(model, optimizer, 1)
            pytest.fail("the drift has to be told at the next look")
    assert [c.name for c in caught.value.changes] == ["backbone.0.weight"]


def test_undo_inside_ends_the_watch() -> None:
    model, part = frozen()
    with fl.guard(part) as guard:
        optimizer = SGD(model.parameters(), lr=0.1)
        train(model, optimizer, 1)
        part.undo()
        train(model, optimizer, 2)
    assert guard.report.steps == 3
    assert guard.report.drift == []


def test_flags_switched_on_by_their_owner() -> None:
    model = flagged()
    with fl.guard(model) as guard:
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        model.backbone[3].weight.requires_grad_(True)
        optimizer.add_param_group({"params": [model.backbone[3].weight]})
        train(model, optimizer, 20)
    assert guard.report.ok
    assert guard.report.notes == ["backbone.3.weight: became trainable, and was let go"]


def test_flags_switched_on_after_a_drift() -> None:
    """Whether it was written before or after it was thawed nobody can tell, so it is no alarm."""
    model = flagged()
    with fl.guard(model) as guard:
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        nudge(model)
        model.backbone[0].weight.requires_grad_(True)
        optimizer.add_param_group({"params": [model.backbone[0].weight]})
        ENTRY.loss(model, ENTRY.batch()).backward()
        optimizer.step()
    (change,) = guard.report.changes
    assert (change.name, change.severity) == ("backbone.0.weight", "report")
    # The nudge alone: what the step wrote is no drift any more.
    assert (change.changed_elements, change.max_abs) == (1, pytest.approx(1.0))


@pytest.mark.parametrize("event", ["let go", "moved", "replaced"])
def test_writes_are_seen_beside_an_event_that_begins_the_record_anew(event: str) -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(part):
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        if event == "let go":
            fl.unfreeze(model, "backbone.3")
        elif event == "moved":
            model.backbone[3].weight.data = model.backbone[3].weight.data.clone()
        else:
            model.backbone[3].bias = nn.Parameter(model.backbone[3].bias.detach().clone(), False)
        nudge(model)
        train(model, optimizer, 1)
        pytest.fail("the next step has to see the write")
    assert [c.name for c in caught.value.changes if c.severity == "drift"] == ["backbone.0.weight"]


def test_flags_of_a_part_switched_on_by_others() -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(part):
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        model.backbone[0].weight.requires_grad_(True)
        train(model, optimizer, 17)
    (change,) = caught.value.changes
    assert (change.name, change.kind) == ("backbone.0.weight", "requires_grad")
    assert "requires_grad was switched on" in change.cause
