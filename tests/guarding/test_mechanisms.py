# ruff: noqa: PT012  (what is guarded is a block, and the test is where in it the alarm comes)
"""One small test for each mechanism of the guard; `make ablate` turns them off one by one.

Each test asks for one thing that only its mechanism gives. tests/guarding/ablations.py says which.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.nn import functional as F
from torch.optim import SGD, Adam

import frostline as fl
from frostline.errors import FrostlineWarning, FrozenStateChanged
from frostline.guarding import pages, ranks
from frostline.guarding.identity import ROTATION, Identity
from frostline.guarding.kernel import why_unavailable
from frostline.guarding.target import resolve
from tests.guarding.in_child import in_child
from tests.guarding.loops import (
    backbone_bits,
    contents,
    flagged,
    frozen,
    head_optimizer,
    nudge,
    train,
)

needs_pages = pytest.mark.skipif(why_unavailable() is not None, reason="the kernel cannot witness")


@contextmanager
def told() -> Iterator[list[warnings.WarningMessage]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("error")
        warnings.simplefilter("always", FrostlineWarning)
        yield caught


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


def large(where: slice, times: int = 1, **how: Any) -> list[tuple[str, int | None]]:
    """Tier and step of what is told of writes to a large weight, before the exit."""
    model = Large()
    optimizer = SGD(model.head.parameters(), lr=0.1)
    with told(), fl.guard(model, on_change="restore", **how) as guard:
        model.step(optimizer)
        for _ in range(times):
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
    assert large(slice(131072, 131073), times=2) == [("pages", 2), ("pages", 3)]
    model = Large()
    optimizer = SGD(model.head.parameters(), lr=0.1)
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


# --- pinpointing -------------------------------------------------------------------------------


def culprits(deed: Any) -> list[tuple[str, str]]:
    """File and operation of what pinpointing found."""
    model = flagged()
    with told(), fl.guard(model, on_change="warn", pinpoint=True) as guard:
        deed(model)
        pinpoint = guard._witness._pinpoint
        assert pinpoint is not None
        pinpoint.stop()
        return [(c.where.partition(":")[0], c.operation) for c in pinpoint.culprits]


HERE = "tests/guarding/test_mechanisms.py"


def test_dispatch() -> None:
    assert culprits(lambda m: m.backbone[0].weight.data.add_(1)) == [(HERE, "aten.add_")]


def test_undeclared_writes() -> None:
    def normalise(model: nn.Module) -> None:
        norm = model.backbone[1]
        F.batch_norm(torch.ones(4, 16), norm.running_mean, norm.running_var, training=True)

    ((where, operation),) = set(culprits(normalise))
    assert where == HERE
    assert "batch_norm" in operation


def by_numpy(model: nn.Module) -> None:
    array = model.backbone[0].weight.detach().numpy()
    array[0] += 3.0
    del array


def test_line_tracing() -> None:
    assert culprits(by_numpy) == [(HERE, "line")]


def rebind(model: nn.Module) -> None:
    model.backbone[0].weight.data = torch.ones(16, 12)
    del model


def test_lines_of_other_memory() -> None:
    assert culprits(rebind) == [(HERE, "line")]


@pytest.mark.parametrize("answer", ["warn", "restore"])
def test_lines_after_an_alarm(answer: str) -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    with told(), fl.guard(model, on_change=answer, pinpoint="auto") as guard:
        for _ in range(2):
            by_numpy(model)
            train(model, optimizer, 1)
    assert any(change.culprit is not None for change in guard.report.changes)


def test_lines_of_what_is_known_to_have_changed() -> None:
    test_lines_after_an_alarm("warn")


# --- before the first step, and what never moved -----------------------------------------------


def found_before(mistake: Any, optimizer: Any = head_optimizer) -> str:
    model = flagged()
    mistake(model)
    with told(), fl.guard(model, on_change="warn") as guard:
        train(model, optimizer(model), 1)
    return " ".join(finding.what for finding in guard.report.preflight)


def test_norms_in_training_mode() -> None:
    assert "training mode" in found_before(lambda m: m.backbone.train())


def test_modules_that_write_to_themselves() -> None:
    def observed(model: nn.Module) -> None:
        model.backbone.append(torch.ao.quantization.MinMaxObserver())

    assert "write to themselves" in found_before(observed)


def stale(model: nn.Module) -> None:
    model.backbone[0].weight.grad = torch.ones(16, 12)


def test_stale_gradients() -> None:
    assert "gradient from before" in found_before(stale)


def test_frozen_in_an_optimizer() -> None:
    def all_in_one(model: nn.Module) -> SGD:
        optimizer = SGD(model.parameters(), lr=0.1)
        # Kept as zeros, so that the decay of the step writes.
        optimizer.zero_grad = lambda *args: None  # type: ignore[method-assign]
        return optimizer

    assert "in a group of SGD" in found_before(stale, all_in_one)


def test_shared_bytes() -> None:
    def share(model: nn.Module) -> None:
        model.head.bias = nn.Parameter(model.backbone[0].bias.data[:5])

    assert "shares bytes" in found_before(share)


def idle_of(model: nn.Module, optimizer: Any) -> list[str]:
    with fl.guard(model) as guard:
        train(model, optimizer, 2)
    return [f"{entry.name}: {entry.reason}" for entry in guard.report.idle]


def test_idle() -> None:
    model = flagged()
    assert idle_of(model, SGD([model.head.weight], lr=0.1)) == ["head.bias: in no optimizer"]


def test_idle_without_a_gradient() -> None:
    model = flagged()
    model.head.register_parameter("extra", nn.Parameter(torch.ones(2)))
    assert idle_of(model, head_optimizer(model)) == ["head.extra: no gradient"]


# --- ranks -------------------------------------------------------------------------------------


def test_ranks() -> None:
    tables = {0: {"w": "a"}, 1: {"w": "a"}, 2: {"w": "b"}}
    assert ranks._judge(3, (), tables, []).differing == [(2, ["w"])]


def test_ranks_are_compared_at_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "are_several", lambda: True)
    monkeypatch.setattr(ranks, "shared_key", lambda label: 5)
    report = ranks._judge(2, (), {0: {"head.bias": "a"}, 1: {"head.bias": "b"}}, [])
    monkeypatch.setattr(ranks, "compare", lambda table, label: report)
    _, part = frozen()
    with told(), fl.guard(part, on_change="warn") as guard:
        guard.check()
        assert [change.tier for change in guard.report.changes] == ["ranks"]


def test_small_tensors_have_numbers() -> None:
    model, part = frozen()
    with told(), fl.guard(part, on_change="warn") as guard:
        nudge(model)
    (change,) = guard.report.changes
    assert (change.changed_elements, change.elements) == (1, 192)
