"""Rounds: what is one step, who hears of it, and that torch's hooks go as they came."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adam, Optimizer
from torch.optim import optimizer as torch_optimizer

from frostline.guarding import rounds
from frostline.guarding.rounds import MANY, Rounds
from tests.guarding.pages.in_child import in_child


class Ear:
    """Counts rounds as a guard does, and notes what it heard and when it would look."""

    def __init__(self) -> None:
        self.rounds, self.heard, self.looks = Rounds(), [], []

    def before_step(self, optimizer: Optimizer) -> None:
        self.heard.append(("before", optimizer))
        self.rounds.begins(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        self.heard.append(("after", optimizer))
        if self.rounds.is_time_to_look:
            self.looks.append(self.rounds.steps)


def hooks() -> tuple[list[object], list[object]]:
    return (
        list(torch_optimizer._global_optimizer_pre_hooks.items()),
        list(torch_optimizer._global_optimizer_post_hooks.items()),
    )


@pytest.fixture
def ear() -> Iterator[Ear]:
    before, ear = hooks(), Ear()
    rounds.listen(ear)
    yield ear
    rounds.unlisten(ear)
    assert hooks() == before


def optimizer_of(*parameters: nn.Parameter) -> SGD:
    return SGD(list(parameters) or [nn.Parameter(torch.ones(2))], lr=0.1)


def test_one_optimizer(ear) -> None:
    optimizer = optimizer_of()
    for _ in range(4):
        optimizer.step()
    assert ear.rounds.steps == 4
    assert ear.heard == [(when, optimizer) for _ in range(4) for when in ("before", "after")]
    assert ear.looks == [1, 2, 3, 4]


def test_twenty_optimizers_in_backward_make_one_step(ear) -> None:
    parameters = [nn.Parameter(torch.randn(3)) for _ in range(20)]
    optimizers = {p: SGD([p], lr=0.1) for p in parameters}
    for p in parameters:
        p.register_post_accumulate_grad_hook(lambda p: optimizers[p].step())
    for _ in range(5):
        sum((p**2).sum() for p in parameters).backward()
    assert ear.rounds.steps == 5
    assert len(ear.heard) == 5 * 20 * 2
    # The first round is looked at after each, since nobody knows yet how many there are.
    assert ear.looks == [1] * 20 + [2, 3, 4, 5]


SEQUENCES = {
    "two take turns": ("ABABAB", 3),
    "two in changing order": ("ABBAAB", 3),
    "five to one": ("AAAAAB" * 3, 15),
    "one begins later": ("AABAB", 3),
    "one ends earlier": ("ABABAA", 4),
    "one alone": ("AAAA", 4),
    "three once": ("ABC", 1),
    "three twice": ("ABCABC", 2),
    "none": ("", 0),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences(ear, name) -> None:
    letters, steps = SEQUENCES[name]
    optimizers = {letter: optimizer_of() for letter in "ABC"}
    for letter in letters:
        optimizers[letter].step()
    assert ear.rounds.steps == steps
    assert len(ear.looks) == len(letters), "few optimizers: a look after each"


@pytest.mark.parametrize("count", [MANY - 1, MANY, MANY + 1])
def test_from_how_many_on_only_the_last_is_waited_for(ear, count) -> None:
    optimizers = [optimizer_of() for _ in range(count)]
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()
    looks_of_third = ear.looks.count(3)
    assert looks_of_third == (count if count <= MANY else 1)


def test_a_round_that_falls_short_does_not_silence_the_next(ear) -> None:
    optimizers = [optimizer_of() for _ in range(12)]
    for size in (12, 12, 9, 9, 12):
        for optimizer in optimizers[:size]:
            optimizer.step()
    assert ear.rounds.steps == 5
    assert {1, 2, 4, 5} <= set(ear.looks)


def test_optimizers_that_died_count_for_nothing(ear) -> None:
    for _ in range(3):
        optimizer_of().step()
        gc.collect()
    kept = optimizer_of()
    kept.step()
    kept.step()
    assert len(ear.rounds._stepped) == 1


def test_closures_of_lbfgs_are_one_step(ear) -> None:
    p = nn.Parameter(torch.tensor([3.0]))
    optimizer, calls = LBFGS([p], max_iter=7), []

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = ((p - 1) ** 4).sum()
        loss.backward()
        return loss

    for _ in range(2):
        optimizer.step(closure)
    assert len(calls) > 2
    assert ear.rounds.steps == 2


def test_steps_by_hand(ear) -> None:
    optimizer = optimizer_of()
    for _ in range(3):
        ear.rounds.by_hand()
    assert ear.rounds.steps == 3
    optimizer.step()
    assert ear.rounds.steps == 3, "the optimizer steps within the round that was counted"
    optimizer.step()
    assert ear.rounds.steps == 4


def test_hooks_go_as_they_came() -> None:
    handle = torch_optimizer.register_optimizer_step_pre_hook(lambda *_: None)
    try:
        before = hooks()
        one, two = Ear(), Ear()
        rounds.listen(one)
        installed = hooks()
        rounds.listen(two)
        assert hooks() == installed, "one pair of hooks for all listeners"
        assert [len(side) for side in installed] == [len(side) + 1 for side in before]
        optimizer_of().step()
        rounds.unlisten(one)
        assert hooks() == installed
        optimizer_of().step()
        assert (len(one.heard), len(two.heard)) == (2, 4)
        rounds.unlisten(one)
        rounds.unlisten(two)
        assert hooks() == before
        optimizer_of().step()
        assert len(two.heard) == 4
        rounds.unlisten(two)
    finally:
        handle.remove()


def test_an_exception_of_a_listener_reaches_the_user_and_the_hooks_still_go(ear) -> None:
    def refuse(optimizer: Optimizer) -> None:
        raise RuntimeError("frozen tensor changed")

    ear.after_step = refuse
    optimizer = optimizer_of()
    with pytest.raises(RuntimeError, match="frozen tensor changed"):
        optimizer.step()
    del ear.after_step
    optimizer.step()
    assert ear.rounds.steps == 2


def test_a_listener_may_leave_while_it_hears(ear) -> None:
    class Leaving(Ear):
        def before_step(self, optimizer: Optimizer) -> None:
            super().before_step(optimizer)
            rounds.unlisten(self)

    leaving = Leaving()
    rounds.listen(leaving)
    optimizer_of().step()
    assert len(leaving.heard) == 1
    assert len(ear.heard) == 2


def test_a_child_hears_nothing_and_the_parent_goes_on(ear) -> None:
    optimizer = optimizer_of()
    optimizer.step()

    def child() -> list[int]:
        optimizer.step()
        return [len(ear.heard), *(len(side) for side in hooks())]

    # What else hooks torch's optimizers in this process is none of ours.
    assert in_child(child) == [2, *(len(side) - 1 for side in hooks())]
    optimizer.step()
    assert len(ear.heard) == 4


def test_a_child_may_listen_for_itself(ear) -> None:
    def child() -> int:
        own = Ear()
        rounds.listen(own)
        optimizer_of().step()
        return own.rounds.steps

    assert in_child(child) == 1


@pytest.mark.parametrize("make", [SGD, Adam], ids=["SGD", "Adam"])
def test_nothing_is_looked_at_inside_compiled_code(ear, monkeypatch, make: Callable) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    make([nn.Parameter(torch.ones(2))], lr=0.1).step()
    monkeypatch.undo()
    assert ear.heard == []
