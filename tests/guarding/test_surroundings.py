# ruff: noqa: PT012  (what is guarded is a block, and the test is where in it something happens)
"""What surrounds a guard: odd models and settings, what it keeps, and what it says meanwhile."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD

import frostline as fl
from frostline.errors import FrozenStateChanged, PagesUnavailable, UnsupportedTensor
from frostline.guarding.causes import finding
from frostline.guarding.pages import kernel
from tests.guarding.loops import (
    ENTRY,
    flagged,
    frozen,
    head_optimizer,
    nudge,
    told,
    train,
)

ANSWERS = ["raise", "warn", "restore", "rewind"]

# --- what the report says before the exit ------------------------------------------------------


@pytest.mark.parametrize("proof", ["auto", "content"])
@pytest.mark.parametrize("drifts", [False, True])
def test_unchanged_is_said_at_the_exit_alone(proof: str, drifts: bool) -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    said = []
    with told(), fl.guard(model, on_change="warn", proof=proof, overhead=0) as guard:
        train(model, optimizer, 1)
        said.append(guard.report.unchanged)
        if drifts:
            nudge(model)
        said.append(guard.report.unchanged)
        train(model, optimizer, 1)
        guard.check()
        said.append(guard.report.unchanged)
    assert said == [False, False, False]
    assert guard.report.unchanged is not drifts


# --- models that cannot be watched -------------------------------------------------------------


def scripted() -> nn.Module:
    return nn.Sequential(torch.jit.script(nn.Linear(2, 2)), nn.Linear(2, 1))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(2), nn.Linear(2, 1))


def lazy_statistics() -> nn.Module:
    return nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(2, 1))


REFUSED: dict[Callable[[], nn.Module], str] = {
    scripted: "ScriptModule keeps its tensors out of Python's reach. Guard the model that",
    lazy: r"0\.weight: not initialised yet \(a lazy module\)\. Run one batch through the model",
    lazy_statistics: r"0\.\w+: not initialised yet \(a lazy module\)\. Run one batch",
}


@pytest.mark.parametrize("make", REFUSED)
@pytest.mark.parametrize("how", ["select", "flags"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_refused_in_words_of_ours(make: Callable[[], nn.Module], how: str) -> None:
    model = make()
    for p in model[0].parameters():
        p.requires_grad = False
    with pytest.raises(UnsupportedTensor, match=REFUSED[make]):
        fl.guard(model, "0" if how == "select" else None).__enter__()


def test_a_lazy_module_beside_what_is_watched_is_none_of_our_business() -> None:
    model = lazy()
    with fl.guard(model, "1") as guard:
        guard.step()
    assert guard.report.unchanged


# --- settings of the process -------------------------------------------------------------------


@contextmanager
def made_on(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_default_device_around_the_entry(answer: str) -> None:
    model, part = frozen()
    with made_on("meta"):
        guard = fl.guard(part, on_change=answer).__enter__()
    train(model, head_optimizer(model), 2)
    with made_on("meta"):
        guard.__exit__(None, None, None)
    assert (guard.report.ok, guard.report.unchanged, guard.report.frozen) == (True, True, 14)


def test_a_default_device_around_the_entry_hides_no_write() -> None:
    model, part = frozen()
    with made_on("meta"):
        guard = fl.guard(part, on_change="warn").__enter__()
    with told():
        train(model, head_optimizer(model), 2, {2: nudge})
        guard.__exit__(None, None, None)
    assert [c.name for c in guard.report.changes] == ["backbone.0.weight"]


def test_pages_are_refused_at_the_entry_and_nowhere_else() -> None:
    if kernel.why_unavailable() is not None:
        pytest.skip("the kernel cannot witness")
    model = flagged()
    strided = model.backbone[0].weight.data.clone().t().contiguous().t()
    with fl.guard(model, proof="pages", on_change="warn") as guard:
        train(model, head_optimizer(model), 1)
        model.backbone[0].weight.data = strided
        train(model, head_optimizer(model), 1)
    assert guard.report.unchanged
    with pytest.raises(PagesUnavailable, match=r"backbone\.0\.weight"):
        fl.guard(model, proof="pages").__enter__()


# --- what is kept ------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("pinpoint", [False, True])
@pytest.mark.parametrize("raises", [False, True])
def test_a_guard_that_is_over_keeps_nothing_alive(
    answer: str, pinpoint: bool, raises: bool
) -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    kept = weakref.ref(model), weakref.ref(optimizer)
    try:
        with fl.guard(model, on_change=answer, pinpoint=pinpoint) as guard:
            train(model, optimizer, 2)
            if raises:
                raise KeyError
    except KeyError:
        pass
    del model, optimizer
    gc.collect()
    assert [ref() for ref in kept] == [None, None]
    assert guard.report.steps == 2


class Spare(nn.Module):
    """A model with a layer that somebody gives gradients to, and that no optimizer has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        self.head = nn.Linear(4, 1)


def test_steps_without_news_leave_no_evidence_behind() -> None:
    model = Spare()
    optimizer = SGD(model.head.parameters(), lr=0.01)

    def evidence() -> int:
        gc.collect()
        return sum(type(o).__name__ == "StepEvidence" for o in gc.get_objects())

    counts = []
    with fl.guard(model, "body", proof="content", overhead=0) as guard:
        for number in range(500):
            # The body was selected, is trainable, and has gradients that nobody clears.
            model.head(model.body(torch.ones(2, 4))).sum().backward()
            optimizer.step()
            if number in (9, 499):
                counts.append(evidence())
    assert guard.report.steps == 500
    assert 0 < counts[0] == counts[1] < 5


# --- what is said of a run in which little happened --------------------------------------------


def test_steps_that_a_scaler_left_out() -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    scaler = GradScaler("cpu", init_scale=1e30)
    with fl.guard(model) as guard:
        for _ in range(5):
            optimizer.zero_grad()
            (scaler.scale(ENTRY.loss(model, ENTRY.batch())) * 1e30).backward()
            scaler.step(optimizer)
            scaler.update(1e30)
    assert (guard.report.steps, guard.report.nothing_ran) == (5, False)
    idle = {entry.name: entry.reason for entry in guard.report.idle}
    assert set(idle) == {"head.weight", "head.bias"}
    assert "in no optimizer" not in idle.values()


# --- causes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["copy", "lerp"])
def test_averaged_statistics_did_not_run_forward(how: str) -> None:
    model, average = ENTRY.build(), ENTRY.build().requires_grad_(False).eval()
    optimizer = SGD(model.parameters(), lr=0.1)
    pairs = [
        *zip(average.parameters(), model.parameters(), strict=True),
        *zip(average.buffers(), model.buffers(), strict=True),
    ]
    with told(), fl.guard(average, on_change="warn") as guard:
        for _ in range(3):
            train(model, optimizer, 1)
            with torch.no_grad():
                for ours, theirs in pairs:
                    if how == "lerp" and ours.is_floating_point():
                        ours.lerp_(theirs, 0.1)
                    else:
                        ours.copy_(theirs)
    changes = [c for c in guard.report.changes if "running" in c.name]
    assert len(changes) == 4
    assert not [c for c in changes if "training mode" in str(c.cause)]


class Odd(torch.Tensor):
    """A subclass that compares with nothing, as those of packages may be."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in {"eq", "ne", "sub"}:
            raise RuntimeError("an odd tensor compares with nothing")
        return super().__torch_function__(func, types, args, kwargs or {})


def test_an_odd_tensor_hides_neither_the_alarm_nor_the_error() -> None:
    model = flagged()
    weight = model.backbone[0].weight
    model.backbone[0].weight = nn.Parameter(weight.detach().as_subclass(Odd), requires_grad=False)
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, fl.guard(model) as guard:
        train(model, head_optimizer(model), 1)
        model.backbone[0].weight.data.mul_(2)
        raise error
    assert caught.value is error
    assert error.__cause__ is error.__context__ is None
    (note,) = error.__notes__
    assert note.startswith("1 of 14 frozen tensors changed")
    (change,) = guard.report.changes
    assert (change.name, change.kind) == ("backbone.0.weight", "value")
    assert change.changed_elements == 192


def test_a_search_for_causes_that_fails_leaves_the_cause_unknown(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(*_: Any) -> Any:
        raise RuntimeError("no rule of ours may do so, and one may all the same")

    monkeypatch.setattr(finding, "find", find)
    model = flagged()
    with (
        caplog.at_level(logging.DEBUG, "frostline"),
        pytest.raises(FrozenStateChanged) as caught,
        fl.guard(model),
    ):
        train(model, head_optimizer(model), 2, {2: nudge})
    assert [(c.name, c.cause) for c in caught.value.changes] == [("backbone.0.weight", "unknown")]
    assert "no cause was found" in caplog.messages
