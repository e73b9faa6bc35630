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
    """No step came between, so the write was one to what was frozen."""
    model = flagged()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(model) as guard:
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        nudge(model)
        model.backbone[0].weight.requires_grad_(True)
        optimizer.add_param_group({"params": [model.backbone[0].weight]})
        ENTRY.loss(model, ENTRY.batch()).backward()
        optimizer.step()
        pytest.fail("the drift has to be told at the next look")
    (change,) = caught.value.changes
    assert guard.report.changes == [change]
    assert (change.name, change.severity) == ("backbone.0.weight", "drift")
    # The nudge alone: what the step wrote is no drift any more.
    assert (change.changed_elements, change.max_abs) == (1, pytest.approx(1.0))


def test_statistics_written_after_their_norm_was_switched_on_are_no_drift() -> None:
    """Nobody told when the flags were switched: the norm ran since, and was meant to."""
    model = flagged()
    with fl.guard(model) as guard:
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        model.backbone[0:3].requires_grad_(True).train()
        train(model, optimizer, 2)
    norm = {f"backbone.1.{n}" for n in ("running_mean", "running_var", "num_batches_tracked")}
    assert {(c.name, c.severity) for c in guard.report.changes} == {(n, "report") for n in norm}
    assert guard.report.ok
    assert guard.report.let_go == 7
    assert guard.report.frozen == 7
    # Seven tensors did not change; that nothing did would be too much said.
    assert not guard.report.unchanged


def test_flags_switched_off_again_are_watched_again() -> None:
    model = flagged()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(model) as guard:
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        weight = model.backbone[0].weight.requires_grad_(True)
        train(model, optimizer, 1, {1: nudge})
        weight.requires_grad_(False)
        train(model, optimizer, 1)
        assert guard.report.frozen == 14
        train(model, optimizer, 1, {1: nudge})
        pytest.fail("it is frozen again, as it was when the flag went off")
    (change,) = caught.value.changes
    assert (change.name, change.max_abs) == ("backbone.0.weight", pytest.approx(1.0))


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
