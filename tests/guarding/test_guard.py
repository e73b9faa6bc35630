# ruff: noqa: PT012  (what is guarded is a block, and the test is where in it the alarm comes)
"""The life of a guard: entry, steps by anybody's optimizer, letting go, exit; nothing stays."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import LBFGS, SGD, Adam, Optimizer

import frostline as fl
from frostline.errors import FreezeError, FrostlineWarning, FrozenStateChanged, SelectionError
from tests.guarding.loops import (
    BACKBONE,
    ENTRY,
    frozen,
    globals_of_torch,
    head_optimizer,
    model_of,
    nudge,
    train,
)

# --- entry and exit ----------------------------------------------------------------------------


def test_a_clean_run() -> None:
    model, part = frozen()
    with fl.guard(part) as guard:
        train(model, head_optimizer(model), 3)
    report = guard.report
    assert (report.ok, report.steps, report.unchanged, report.nothing_ran) == (True, 3, True, False)
    assert report.frozen == len({id(t) for t in part.tensors.values()}) == 14
    assert report.nbytes == sum(t.nbytes for t in part.tensors.values())
    assert not report.changes
    assert not report.preflight
    assert not report.idle


def test_entry_seals_what_is_not_sealed() -> None:
    model, part = frozen(seal=False)
    assert not part.sealed
    with fl.guard(part):
        assert part.sealed
        train(model, head_optimizer(model), 1)
    assert part.changes() == []


@pytest.mark.parametrize("answer", ["raise", "warn"])
def test_a_part_that_changed_before_is_told_at_the_entry(answer: str) -> None:
    model, part = frozen()
    nudge(model)
    before = globals_of_torch()
    guard = fl.guard(part, on_change=answer)
    if answer == "raise":
        with pytest.raises(FrozenStateChanged, match="before the guard") as caught:
            guard.__enter__()
        assert [c.name for c in caught.value.changes] == ["backbone.0.weight"]
        assert globals_of_torch() == before
        return
    with pytest.warns(FrostlineWarning, match="before the guard"), guard:
        pass_a_step(model)
    assert [(c.name, c.step) for c in guard.report.changes] == [("backbone.0.weight", None)]
    assert not guard.report.ok


def pass_a_step(model: nn.Module) -> None:
    train(model, head_optimizer(model), 1)


def test_a_guard_is_entered_once() -> None:
    model, part = frozen()
    with fl.guard(part) as guard:
        with pytest.raises(FreezeError, match="this guard was entered before; make a new one"):
            guard.__enter__()
        pass_a_step(model)
    with pytest.raises(FreezeError, match="this guard was entered before"), guard:
        pass


@pytest.mark.parametrize("verb", ["step", "check"])
def test_verbs_outside_of_the_block(verb: str) -> None:
    model, part = frozen()
    guard = fl.guard(part)
    with pytest.raises(FreezeError, match=f"guard.{verb} has nothing to look at: .* not entered"):
        getattr(guard, verb)()
    with guard:
        pass_a_step(model)
    with pytest.raises(FreezeError, match=f"guard.{verb} has nothing .* was left already"):
        getattr(guard, verb)()


def test_the_report_can_be_read_at_any_time() -> None:
    model, part = frozen()
    guard = fl.guard(part)
    with pytest.raises(FreezeError, match=r"guard\.report has nothing to look at: .* not entered"):
        _ = guard.report
    with guard:
        assert guard.report.nothing_ran
        assert "nothing ran" in str(guard.report)
        optimizer = head_optimizer(model)
        for number in range(1, 4):
            train(model, optimizer, 1)
            assert guard.report.steps == number
            assert guard.report.ok
            assert str(guard.report)
    assert guard.report.steps == 3
    assert guard.report.idle == []


def test_nothing_ran_is_not_ok() -> None:
    _, part = frozen()
    with pytest.warns(FrostlineWarning, match="nothing ran") as caught, fl.guard(part) as guard:
        pass
    assert caught[0].filename == __file__
    assert guard.report.nothing_ran
    assert not guard.report.ok
    # Every byte was read at the exit all the same.
    assert guard.report.unchanged


def test_a_write_is_told_though_nothing_ran() -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged), fl.guard(part) as guard:
        nudge(model)
    assert not guard.report.ok


def test_a_model_without_a_frozen_part_is_refused() -> None:
    with pytest.raises(SelectionError, match="frozen"):
        fl.guard(model_of())


# --- who steps ---------------------------------------------------------------------------------


def test_steps_by_hand() -> None:
    model, part = frozen()
    with fl.guard(part) as guard:
        for _ in range(3):
            ENTRY.loss(model, ENTRY.batch()).backward()
            with torch.no_grad():
                for p in model.head.parameters():
                    p -= 0.1 * p.grad
            guard.step()
    assert (guard.report.steps, guard.report.ok) == (3, True)


def test_a_step_by_hand_looks() -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged), fl.guard(part) as guard:
        guard.step()
        nudge(model)
        guard.step()
        pytest.fail("the second step has to look")
    assert guard.report.changes[0].step == 2


def test_a_frozen_teacher_counts_any_optimizer() -> None:
    teacher, student = model_of(), model_of()
    part = fl.freeze(teacher)
    optimizer = SGD(student.parameters(), lr=0.01)
    with fl.guard(part) as guard:
        train(student, optimizer, 2)
    assert (guard.report.steps, guard.report.ok) == (2, True)


def test_optimizers_of_other_models_are_not_counted() -> None:
    model, part = frozen()
    other = model_of()
    mine, theirs = head_optimizer(model), SGD(other.parameters(), lr=0.01)
    with fl.guard(part) as guard:
        train(other, theirs, 3)
        assert guard.report.nothing_ran
        train(model, mine, 1)
    assert guard.report.steps == 1


def two_optimizers(model: nn.Module) -> list[Optimizer]:
    return [SGD([model.head.weight], lr=0.1), Adam([model.head.bias])]


LOOPS: dict[str, tuple[str, int]] = {
    "two optimizers in turn": ("ABABAB", 3),
    "n_critic of 3": ("AAABAAAB", 6),
    "one that rests": ("AAAA", 4),
    "both in changing order": ("ABBAAB", 3),
}


@pytest.mark.parametrize(("turns", "steps"), LOOPS.values(), ids=LOOPS)
def test_rounds_of_two_optimizers(turns: str, steps: int) -> None:
    model, part = frozen()
    first, second = two_optimizers(model)
    with fl.guard(part) as guard:
        for who in turns:
            train(model, first if who == "A" else second, 1)
    assert (guard.report.steps, guard.report.ok) == (steps, True)


@pytest.mark.parametrize("second", [False, True])
def test_it_looks_after_each_of_two_optimizers(second: bool) -> None:
    model, part = frozen()
    optimizers = two_optimizers(model)
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(part):
        train(model, optimizers[0], 1)
        if second:
            train(model, optimizers[1], 1, {1: nudge})
        else:
            train(model, optimizers[0], 1, {1: nudge})
        pytest.fail("it has to look after each")
    assert caught.value.changes[0].step == (1 if second else 2)


def test_a_gan_whose_judge_is_frozen_for_a_while() -> None:
    model = model_of()
    maker, judge = model.backbone, model.head
    maker_steps, judge_steps = SGD(maker.parameters(), lr=0.01), SGD(judge.parameters(), lr=0.01)
    for _ in range(2):
        with fl.freeze(model, "head", mode="follow") as part, fl.guard(part) as guard:
            train(model, maker_steps, 2)
        assert (guard.report.steps, guard.report.ok) == (2, True)
        with fl.freeze(model, BACKBONE) as part, fl.guard(part) as guard:
            train(model, judge_steps, 3)
        assert (guard.report.steps, guard.report.ok) == (3, True)


def lbfgs(model: nn.Module) -> int:
    optimizer = LBFGS(model.head.parameters(), max_iter=4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = ENTRY.loss(model, ENTRY.batch())
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    return 2


def in_backward(model: nn.Module) -> int:
    optimizers = {p: SGD([p], lr=0.01) for p in model.head.parameters()}
    handles = [
        p.register_post_accumulate_grad_hook(lambda p: optimizers[p].step()) for p in optimizers
    ]
    for _ in range(3):
        ENTRY.loss(model, ENTRY.batch()).backward()
    for handle in handles:
        handle.remove()
    return 3


def later_group(model: nn.Module) -> int:
    optimizer = SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
    optimizer.step()  # of nobody's model yet
    optimizer.add_param_group({"params": list(model.head.parameters())})
    train(model, optimizer, 2)
    return 2


@pytest.mark.parametrize("loop", [lbfgs, in_backward, later_group])
def test_other_ways_to_step(loop: Callable[[nn.Module], int]) -> None:
    model, part = frozen()
    with fl.guard(part) as guard:
        steps = loop(model)
    assert (guard.report.steps, guard.report.ok) == (steps, True)


def test_compiled_steps_may_tell_nothing_and_are_counted_by_hand() -> None:
    model, part = frozen()
    optimizer = head_optimizer(model)
    step = torch.compile(optimizer.step, backend="eager")
    with fl.guard(part) as guard:
        for _ in range(2):
            optimizer.zero_grad()
            ENTRY.loss(model, ENTRY.batch()).backward()
            step()
            guard.step()
    # What torch did not compile of it has told of itself as well.
    assert guard.report.steps >= 2
    assert guard.report.ok


def scaler_that_skips() -> GradScaler:
    # Halved it stays what it is, so every step is left out.
    return GradScaler("cpu", init_scale=float("inf"))


@pytest.mark.parametrize("fused", [False, True])
def test_a_skipped_step_counts_and_looks(fused: bool) -> None:
    model, part = frozen()
    optimizer = Adam(model.head.parameters(), fused=fused)
    head = model.head.weight.detach().clone()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(part) as guard:
        scaler = scaler_that_skips()
        train(model, optimizer, 2, scaler=scaler)
        assert guard.report.steps == 2
        assert torch.equal(model.head.weight, head)
        train(model, optimizer, 1, {1: nudge}, scaler=scaler)
        pytest.fail("a step that is left out has to be looked at")
    assert caught.value.changes[0].step == 3


# --- save points -------------------------------------------------------------------------------


def test_a_save_point_reads_every_byte() -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged, match=r"backbone\.0\.weight"), fl.guard(part):
        train(model, head_optimizer(model), 1)
        nudge(model)
        model.state_dict()
        pytest.fail("a changed model must not be saved in silence")


def test_the_state_dict_of_others_is_no_save_point() -> None:
    model, part = frozen()
    with fl.guard(part) as guard:
        train(model, head_optimizer(model), 1)
        before = looks(guard)
        model_of().state_dict()
        model.head.state_dict()
        assert looks(guard) == before
        model.state_dict()
        assert looks(guard) == before + 1


def looks(guard: fl.types.FreezeGuard) -> int:
    return next(t.looks for t in guard.report.tiers if t.name == "full check")


def hooks_of(model: nn.Module) -> list[tuple[str, int]]:
    return [
        (f"{name}.{key}", len(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "hook" in key and hasattr(value, "__len__")
    ]


def test_copies_and_pickles_know_nothing_of_the_guard() -> None:
    model, part = frozen()
    keys = {name: set(vars(m)) for name, m in model.named_modules()}
    hooks, pickled = hooks_of(model), len(pickle.dumps(model))
    with fl.guard(part):
        train(model, head_optimizer(model), 1)
        twin, again = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert len(pickle.dumps(model)) == pickled
        assert "guard" not in " ".join(vars(model))
        for one in (model, twin, again):
            assert {name: set(vars(m)) for name, m in one.named_modules()} == keys
            assert hooks_of(one) == hooks
        # Copies are free: what happens to them is nobody's alarm.
        nudge(twin)
        nudge(again)


# --- nothing stays -----------------------------------------------------------------------------


def leave_by_error(model: nn.Module, part: fl.types.FrozenPart) -> None:
    with pytest.raises(ZeroDivisionError), fl.guard(part, pinpoint=True):
        train(model, head_optimizer(model), 1)
        1 / 0  # noqa: B018


def leave_by_alarm(model: nn.Module, part: fl.types.FrozenPart) -> None:
    with pytest.raises(FrozenStateChanged), fl.guard(part, pinpoint=True):
        train(model, head_optimizer(model), 2, {2: nudge})


def leave_by_alarm_at_exit(model: nn.Module, part: fl.types.FrozenPart) -> None:
    with pytest.raises(FrozenStateChanged), fl.guard(part):
        nudge(model)


def refused_at_entry(model: nn.Module, part: fl.types.FrozenPart) -> None:
    nudge(model)
    with pytest.raises(FrozenStateChanged), fl.guard(part, pinpoint=True):
        pass


def a_clean_block(model: nn.Module, part: fl.types.FrozenPart) -> None:
    with fl.guard(part, pinpoint=True):
        train(model, head_optimizer(model), 1)


def interleaved(model: nn.Module, part: fl.types.FrozenPart) -> None:
    first, second = fl.guard(part), fl.guard(part)
    optimizer = head_optimizer(model)
    first.__enter__()
    second.__enter__()
    train(model, optimizer, 1)
    first.__exit__(None, None, None)
    train(model, optimizer, 1)
    second.__exit__(None, None, None)
    assert (first.report.steps, second.report.steps) == (1, 2)


WAYS_OUT = [
    a_clean_block,
    leave_by_error,
    leave_by_alarm,
    leave_by_alarm_at_exit,
    refused_at_entry,
    interleaved,
]


@pytest.mark.parametrize("way", WAYS_OUT)
def test_all_globals_come_back(way: Callable[[nn.Module, fl.types.FrozenPart], None]) -> None:
    model, part = frozen()
    before, hooks = globals_of_torch(), hooks_of(model)
    way(model, part)
    after = globals_of_torch()
    assert {k for k in after if after[k] is not before[k] and after[k] != before[k]} == set()
    assert vars(nn.Module)["load_state_dict"] is before["load_state_dict"]
    assert hooks_of(model) == hooks
    assert threading.gettrace() is before["threads"]
