# ruff: noqa: PT012  (what is guarded is a block, and the test is where in it the alarm comes)
"""One small test for each mechanism of the guard; `make ablate` turns them off one by one.

Each test asks for one thing that only its mechanism gives. tests/guarding/ablations.py says which.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD, Adam

import frostline as fl
from frostline.errors import FrozenStateChanged
from frostline.guarding.identity import ROTATION, Identity
from frostline.guarding.pages import record as pages
from frostline.guarding.pages.kernel import why_unavailable
from frostline.guarding.target import resolve
from tests.guarding.loops import (
    backbone_bits,
    contents,
    flagged,
    frozen,
    head_optimizer,
    nudge,
    told,
    train,
)
from tests.guarding.pages.in_child import in_child

needs_pages = pytest.mark.skipif(why_unavailable() is not None, reason="the kernel cannot witness")


def seen(deed: Any, steps: int = 1, held: bool = True, **how: Any) -> list[tuple[str, str]]:
    """Tier and kind of what the steps after a deed tell, before the exit."""
    model, part = frozen() if held else (flagged(), None)
    with told(), fl.guard(model if part is None else part, on_change="warn", **how) as guard:
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        deed(model)
        train(model, optimizer, steps)
        return [(change.tier, change.kind) for change in guard.report.changes]


class Large(nn.Module):
    """A weight of 1 MiB, which has pages of its own, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(512, 512, bias=False)
        self.head = nn.Linear(512, 1)
        self.body.requires_grad_(False)

    def step(self, optimizer: SGD) -> None:
        optimizer.zero_grad()
        self.head(self.body(torch.ones(1, 512))).sum().backward()
        optimizer.step()


def large(where: slice, **how: Any) -> list[tuple[str, int | None]]:
    """Tier and step of what is told of a write to a large weight, before the exit."""
    model = Large()
    optimizer = SGD(model.head.parameters(), lr=0.1)
    with told(), fl.guard(model, on_change="restore", **how) as guard:
        model.step(optimizer)
        model.body.weight.detach().numpy().reshape(-1)[where] = 7
        model.step(optimizer)
        return [(change.tier, change.step) for change in guard.report.changes]


# --- identity ----------------------------------------------------------------------------------


def test_places() -> None:
    def replace(model: nn.Module) -> None:
        model.backbone[0].bias = nn.Parameter(torch.ones(16), requires_grad=False)

    assert seen(replace, proof="content", overhead=0) == [("identity", "value")]


def test_links() -> None:
    def replace(model: nn.Module) -> None:
        model.backbone[0] = nn.Linear(12, 16).requires_grad_(False)

    # The bias is drawn as the old one was, and a norm behind it has kept that from training.
    told = seen(replace, held=False, proof="content", overhead=0)
    assert told == [("identity", "value"), ("identity", "replaced")]


def test_pointers() -> None:
    def rebind(model: nn.Module) -> None:
        model.backbone[0].bias.data = torch.ones(16)

    assert seen(rebind, proof="content", overhead=0) == [("identity", "value")]


def test_modes() -> None:
    model = flagged()
    identity = Identity(resolve(model))
    model.backbone[1].train()
    assert identity.look().modes == ["backbone.1"]


def test_rotation() -> None:
    def switch_on(model: nn.Module) -> None:
        model.backbone[0].weight.requires_grad_(True)

    assert seen(switch_on, ROTATION) == [("identity", "requires_grad")]


def test_versions_are_kept_beside_an_event() -> None:
    model, part = frozen()
    with told(), fl.guard(part, on_change="warn") as guard:
        train(model, head_optimizer(model), 1)
        fl.unfreeze(model, "backbone.3")
        nudge(model)
        train(model, head_optimizer(model), 1)
    assert "in place" in guard.report.changes[0].cause


# --- pages -------------------------------------------------------------------------------------


@needs_pages
def test_small_rest() -> None:
    assert seen(nudge) == [("pages", "value")]


@needs_pages
@pytest.mark.parametrize("where", [slice(0, 1), slice(-1, None)])
def test_edges(where: slice) -> None:
    assert large(where) == [("pages", 2)]


@needs_pages
def test_record() -> None:
    assert large(slice(131072, 131073)) == [("pages", 2)]


@needs_pages
def test_rearm() -> None:
    model = Large()
    optimizer = SGD(model.head.parameters(), lr=0.1)
    with told() as warned, fl.guard(model, on_change="restore"):
        for _ in range(3):
            model.body.weight.detach().numpy().reshape(-1)[131072] = 7
            model.step(optimizer)
        assert len(warned) == 3
    with fl.guard(model) as guard:
        for _ in range(4):
            model.body.weight.data[256, 0] *= 1
            model.step(optimizer)
            model.step(optimizer)
        assert guard._engine.pages is not None
        assert guard._engine.pages.equal_writes == {"body.weight": 4}


@needs_pages
def test_lost_record() -> None:
    model = Large()
    with fl.guard(model) as guard:
        model.step(SGD(model.head.parameters(), lr=0.1))
        (record,) = pages._witness.records
        for start, end in record.ranges:
            pages._witness.tracker.unwatch(start, end - start)
    tier = next(tier for tier in guard.report.tiers if tier.name == "pages")
    assert "lost the record" in tier.why_not


@needs_pages
def test_what_was_written_before_the_record_began_anew() -> None:
    def both(model: nn.Module) -> None:
        model.backbone[3].bias.data = model.backbone[3].bias.data.clone()
        nudge(model)

    assert seen(both) == [("pages", "value")]


# --- content and full check --------------------------------------------------------------------


def test_patrol() -> None:
    assert seen(nudge, 2, proof="content") == [("content", "value")]


def test_quota() -> None:
    model = Large()
    optimizer = SGD(model.head.parameters(), lr=0.1)
    with fl.guard(model, proof="content") as guard:
        for _ in range(4):
            model.step(optimizer)
        assert guard.report.coverage is not None


def test_full_check_at_the_exit() -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged), fl.guard(part):
        train(model, head_optimizer(model), 1)
        nudge(model)


def test_full_check_at_a_save() -> None:
    model, part = frozen()
    with told(), fl.guard(part, on_change="warn") as guard:
        nudge(model)
        model.state_dict()
        assert len(guard.report.changes) == 1


def test_full_check_when_asked() -> None:
    model, part = frozen()
    with told(), fl.guard(part, on_change="warn") as guard:
        nudge(model)
        guard.check()
        assert len(guard.report.changes) == 1


def test_a_check_that_is_cut_short() -> None:
    _, part = frozen()
    with pytest.raises(KeyboardInterrupt), fl.guard(part) as guard:
        raise KeyboardInterrupt
    assert not guard.report.unchanged


# --- who steps ---------------------------------------------------------------------------------


def test_optimizer_hooks() -> None:
    model, part = frozen()
    with told(), fl.guard(part) as guard:
        train(model, head_optimizer(model), 2)
    assert guard.report.steps == 2


def test_skipped_step() -> None:
    model, part = frozen()
    with told(), fl.guard(part) as guard:
        scaler = GradScaler("cpu", init_scale=float("inf"))
        train(model, Adam(model.head.parameters()), 2, scaler=scaler)
    assert guard.report.steps == 2


def test_optimizers_of_others() -> None:
    _model, part = frozen()
    other = flagged()
    with told(), fl.guard(part) as guard:
        train(other, head_optimizer(other), 2)
        assert guard.report.nothing_ran


def test_nothing_ran_is_told() -> None:
    _, part = frozen()
    with told() as caught, fl.guard(part):
        pass
    assert len(caught) == 1


# --- entry, exit, letting go -------------------------------------------------------------------


def test_seal_at_the_entry() -> None:
    _, part = frozen(seal=False)
    with told(), fl.guard(part):
        assert part.sealed


def test_note_on_an_exception() -> None:
    model, part = frozen()
    with pytest.raises(ZeroDivisionError) as caught, fl.guard(part):
        nudge(model)
        raise ZeroDivisionError
    assert len(getattr(caught.value, "__notes__", [])) == 1


def test_let_go_on_unfreeze() -> None:
    model, part = frozen()
    optimizer = head_optimizer(model)
    with fl.guard(part):
        train(model, optimizer, 1)
        optimizer.add_param_group({"params": fl.unfreeze(model, "backbone.3")})
        train(model, optimizer, 2)


def test_last_check_before_it_is_let_go() -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged), fl.guard(part):
        nudge(model)
        part.undo()


def test_flags_that_thaw() -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    with fl.guard(model):
        train(model, optimizer, 1)
        model.backbone[3].weight.requires_grad_(True)
        optimizer.add_param_group({"params": [model.backbone[3].weight]})
        train(model, optimizer, 2)


def test_forked_child() -> None:
    model, part = frozen()
    with told(), fl.guard(part) as guard:

        def child() -> str:
            nudge(model)
            guard.__exit__(None, None, None)
            return "silent"

        assert in_child(child) == "silent"


# --- answers -----------------------------------------------------------------------------------


def test_a_tensor_is_told_once() -> None:
    model, part = frozen()
    with told() as caught, fl.guard(part, on_change="warn") as guard:
        nudge(model)
        guard.check()
        guard.check()
    assert len(caught) == 1 + guard.report.nothing_ran
    assert len(guard.report.changes) == 1


def test_restore() -> None:
    model = flagged()
    before = backbone_bits(model)
    with told(), fl.guard(model, on_change="restore"):
        train(model, head_optimizer(model), 1, {1: nudge})
    assert backbone_bits(model) == before


def test_restore_drops_the_state_of_the_write() -> None:
    model = flagged()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    weight = model.backbone[0].weight
    with told(), fl.guard(model, on_change="restore"):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert weight not in optimizer.state


@needs_pages
def test_restore_knows_what_no_forward_read() -> None:
    model = flagged()
    with told(), fl.guard(model, on_change="restore") as guard:
        model.backbone[0].weight.grad = torch.ones(16, 12)
        SGD(model.parameters(), lr=0.1).step()
    assert guard.report.windows[0].endswith("no step ran on it")


def test_rewind() -> None:
    model = flagged()
    before = contents(model)
    with told(), fl.guard(model, on_change="rewind"):
        train(model, head_optimizer(model), 2, {2: nudge})
    assert contents(model) == before


def test_rewind_goes_to_the_last_check() -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    with told(), fl.guard(model, on_change="rewind") as guard:
        train(model, optimizer, 1)
        guard.check()
        then = contents(model)
        train(model, optimizer, 2, {2: nudge})
    assert contents(model) == then
