# ruff: noqa: PT012  (what is guarded is a block, and the test is where in it the error comes)
"""Errors of the user's block pass through a guard as they are; what it found goes along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import frostline as fl
from frostline.errors import FrostlineWarning, FrozenStateChanged
from frostline.guarding import freeze_guard
from frostline.guarding.pages.kernel import why_unavailable
from tests.guarding.loops import (
    flagged,
    frozen,
    globals_of_torch,
    head_optimizer,
    nudge,
    train,
)
from tests.guarding.pages.in_child import in_child


class Own(Exception):
    pass


ERRORS = [Own("mine"), KeyboardInterrupt(), SystemExit(3), StopIteration(1), GeneratorExit()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("drifts", [False, True])
def test_the_error_of_the_block_passes_unchanged(error: BaseException, drifts: bool) -> None:
    model, part = frozen()
    error.__dict__.clear()
    if hasattr(error, "__notes__"):
        del error.__notes__
    with pytest.raises(type(error)) as caught, fl.guard(part) as guard:
        train(model, head_optimizer(model), 1)
        if drifts:
            model.backbone[0].weight = nn.Parameter(torch.ones(16, 12), requires_grad=False)
        raise error.with_traceback(None)
    assert caught.value is error
    assert error.__cause__ is error.__context__ is None
    lines = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert lines == ["test_the_error_of_the_block_passes_unchanged"]
    notes = getattr(error, "__notes__", [])
    assert len(notes) == drifts
    assert guard.report.ok is not drifts
    if drifts:
        assert notes[0].startswith("1 of 14 frozen tensors changed")
        assert "backbone.0.weight" in notes[0]


def test_a_drift_that_a_step_has_told_is_not_told_twice() -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(part) as guard:
        train(model, head_optimizer(model), 3, {2: nudge})
    assert not hasattr(caught.value, "__notes__")
    assert len(guard.report.changes) == 1


def test_an_alarm_that_was_caught_is_no_news_at_the_exit() -> None:
    model, part = frozen()
    with fl.guard(part) as guard:
        with pytest.raises(FrozenStateChanged):
            train(model, head_optimizer(model), 2, {2: nudge})
        train(model, head_optimizer(model), 1)
    assert len(guard.report.changes) == 1
    assert not guard.report.ok


def test_an_error_while_the_alarm_is_handled_keeps_its_context() -> None:
    model, part = frozen()
    with pytest.raises(Own) as caught, fl.guard(part):
        try:
            train(model, head_optimizer(model), 2, {2: nudge})
        except FrozenStateChanged:
            raise Own("could not save") from None
    assert isinstance(caught.value.__context__, FrozenStateChanged)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("proof", ["auto", "content"])
def test_an_interrupt_reads_not_every_byte(proof: str) -> None:
    model, part = frozen()
    with (
        pytest.raises(KeyboardInterrupt) as caught,
        # The patrol gets no time, so that of content alone nothing is left to see it.
        fl.guard(part, proof=proof, overhead=0) as guard,
    ):
        train(model, head_optimizer(model), 1)
        nudge(model)
        raise KeyboardInterrupt
    # What is cheap is asked all the same: the kernel knows what was written.
    asked = proof == "auto" and why_unavailable() is None
    assert [c.name for c in guard.report.changes] == ["backbone.0.weight"] * asked
    assert len(getattr(caught.value, "__notes__", [])) == asked
    assert not guard.report.unchanged
    assert any("stopped after 0 s, 0 of 14 tensors read" in note for note in guard.report.notes)


def test_the_last_check_takes_its_limit_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze_guard, "LIMIT", -1.0)
    model, part = frozen()
    with pytest.raises(Own), fl.guard(part) as guard:
        train(model, head_optimizer(model), 1)
        raise Own
    assert any("the last full check stopped" in note for note in guard.report.notes)


@pytest.mark.parametrize("proof", ["auto", "content"])
def test_a_check_cut_short_vouches_for_nothing(monkeypatch: pytest.MonkeyPatch, proof: str) -> None:
    monkeypatch.setattr(freeze_guard, "LIMIT", -1.0)
    model, part = frozen()
    with pytest.raises(Own), fl.guard(part, proof=proof) as guard:
        train(model, head_optimizer(model), 1)
        nudge(model)
        raise Own
    assert not guard.report.unchanged


@pytest.mark.parametrize("answer", ["warn", "restore", "rewind"])
def test_the_other_answers_do_not_answer_at_an_error(answer: str) -> None:
    # A warning made an error there would take the place of the user's.
    model = flagged()
    with pytest.raises(Own) as caught, fl.guard(model, on_change=answer):
        train(model, head_optimizer(model), 1)
        nudge(model)
        raise Own
    assert len(caught.value.__notes__) == 1


def test_a_warning_made_an_error_comes_to_the_user() -> None:
    model, part = frozen()
    with pytest.raises(FrostlineWarning), fl.guard(part, on_change="warn"):
        train(model, head_optimizer(model), 2, {2: nudge})


# --- generators --------------------------------------------------------------------------------


def guarded_steps(model: nn.Module, part: fl.types.FrozenPart) -> Iterator[int]:
    optimizer = head_optimizer(model)
    with fl.guard(part):
        for number in range(100):
            train(model, optimizer, 1)
            yield number


def test_a_loop_that_is_a_generator_and_is_left() -> None:
    model, part = frozen()
    before = globals_of_torch()
    steps = guarded_steps(model, part)
    assert [next(steps) for _ in range(3)] == [0, 1, 2]
    assert globals_of_torch() != before
    steps.close()
    assert globals_of_torch() == before


def test_a_loop_that_is_a_generator_and_drifts() -> None:
    model, part = frozen()
    steps = guarded_steps(model, part)
    next(steps)
    nudge(model)
    with pytest.raises(FrozenStateChanged):
        next(steps)


def test_a_loop_that_is_a_generator_and_is_thrown_into() -> None:
    model, part = frozen()
    steps, error = guarded_steps(model, part), Own()
    next(steps)
    nudge(model)
    with pytest.raises(Own) as caught:
        steps.throw(error)
    assert caught.value is error
    assert len(error.__notes__) == 1


# --- other processes ---------------------------------------------------------------------------


class Numbers(Dataset[torch.Tensor]):
    """Reads the weight as well: a worker may hold the model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        self.model.backbone[0].weight.data.add_(1)  # to its own copy
        return torch.full((12,), float(index))


def test_workers_that_fork() -> None:
    model, part = frozen()
    optimizer = head_optimizer(model)
    with fl.guard(part) as guard:
        for rows in DataLoader(
            Numbers(model), batch_size=4, num_workers=2, multiprocessing_context="fork"
        ):
            optimizer.zero_grad()
            model(rows).sum().backward()
            optimizer.step()
    assert (guard.report.steps, guard.report.ok) == (2, True)


def test_a_forked_child_leaves_the_guard_in_silence() -> None:
    model, part = frozen()
    guard = fl.guard(part).__enter__()

    def child() -> list[object]:
        nudge(model)
        train(model, head_optimizer(model), 2)
        guard.__exit__(None, None, None)
        return [guard._report.steps, len(guard._report.changes)]

    assert in_child(child) == [0, 0]
    train(model, head_optimizer(model), 1)
    guard.__exit__(None, None, None)
    assert (guard.report.steps, guard.report.ok) == (1, True)


SCRIPT = """
import sys, tempfile, torch, frostline as fl
net = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.Linear(512, 2))
part = fl.freeze(net, "0")
optimizer = torch.optim.SGD(net[1].parameters(), lr=0.1)
with fl.guard(part, on_change="restore", pinpoint=True):
    net(torch.randn(3, 64)).sum().backward()
    optimizer.step()
    print("guarded", flush=True)
    sys.stdin.read()
"""


def test_a_killed_run_leaves_no_file(tmp_path: Path) -> None:
    shared = set(os.listdir("/dev/shm"))
    environment = {**os.environ, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    run = subprocess.Popen(
        [sys.executable, "-c", SCRIPT],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"guarded\n"
        run.send_signal(signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    assert list(tmp_path.rglob("*")) == []
    assert not {name for name in os.listdir("/dev/shm") if "frost" in name} - shared


def test_an_interrupt_is_quick() -> None:
    # 32 MiB of content take long to check; an interrupt does not wait for it.
    model = nn.Sequential(nn.Linear(2048, 4096), nn.Linear(4096, 2))
    part = fl.freeze(model, "0")
    with pytest.raises(KeyboardInterrupt), fl.guard(part, proof="content") as guard:
        raise KeyboardInterrupt
    assert guard.report.tiers[-1].looks == 1
    assert not any(note for note in guard.report.notes if "0 of 2 tensors read" not in note)
