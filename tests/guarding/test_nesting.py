# ruff: noqa: PT012  (what is guarded is a block, and the test is where in it the alarm comes)
"""Several guards at once: nested, overlapping, of one class, in threads."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
from torch.optim import SGD

import frostline as fl
from frostline.errors import FrostlineWarning, FrozenStateChanged
from frostline.guarding.pages import record as pages
from frostline.guarding.pages.kernel import why_unavailable
from tests.guarding.loops import (
    backbone_bits,
    flagged,
    frozen,
    globals_of_torch,
    head_optimizer,
    model_of,
    nudge,
    train,
)


def test_the_inner_guard_raises_and_the_outer_one_knows() -> None:
    model, part = frozen()
    optimizer = head_optimizer(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FrostlineWarning)
        with fl.guard(part, on_change="warn") as outer:
            train(model, optimizer, 2)
            with pytest.raises(FrozenStateChanged) as alarm, fl.guard(part) as inner:
                train(model, optimizer, 3, {3: nudge})
            train(model, optimizer, 1)
    assert (outer.report.steps, inner.report.steps) == (6, 3)
    assert alarm.value.report is inner.report
    assert [(c.name, c.step) for c in outer.report.changes] == [("backbone.0.weight", 5)]
    assert len(caught) == 1


def test_an_alarm_of_the_inner_guard_gets_no_second_note() -> None:
    model, part = frozen()
    with (
        pytest.raises(FrozenStateChanged) as caught,
        fl.guard(part) as outer,
        fl.guard(part) as inner,
    ):
        train(model, head_optimizer(model), 2, {2: nudge})
    # One of the two told; the other says its own as a note.
    told = caught.value.report
    other = inner if told is outer.report else outer
    assert told is not None
    assert len(told.changes) == len(other.report.changes) == 1
    assert len(getattr(caught.value, "__notes__", [])) <= 1


def test_overlapping_parts_share_one_record_of_pages() -> None:
    if why := why_unavailable():
        pytest.skip(why)
    model = torch.nn.Sequential(
        torch.nn.Linear(256, 256), torch.nn.Linear(256, 256), torch.nn.Linear(256, 2)
    )
    optimizer = SGD(model[2].parameters(), lr=0.1)
    first, second = fl.freeze(model, ["0", "1"]), fl.freeze(model, "1")

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 256)).sum().backward()
        optimizer.step()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrostlineWarning)
        with fl.guard(first, on_change="warn") as a, fl.guard(second, on_change="warn") as b:
            assert len(pages._witness.records) == 2
            tracker = pages._witness.tracker
            step()
            model[1].weight.data[100] += 1
            step()
            model[0].weight.data[100] += 1
            step()
            assert pages._witness.tracker is tracker
    assert pages._witness.records == []
    assert pages._witness.tracker is None
    assert [(c.name, c.step, c.tier) for c in a.report.changes] == [
        ("1.weight", 2, "pages"),
        ("0.weight", 3, "pages"),
    ]
    assert [(c.name, c.step, c.tier) for c in b.report.changes] == [("1.weight", 2, "pages")]


def test_several_parts_in_one_guard() -> None:
    model = model_of("two_branches")
    parts = [fl.freeze(model, "trunk"), fl.freeze(model, "main")]
    from tests.zoo import ZOO

    entry = ZOO["two_branches"]
    optimizer = SGD(model.second.parameters(), lr=0.01)
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(parts) as guard:
        for number in range(3):
            if number == 2:
                model.trunk[0][0].weight.data.add_(1)
                model.main[1].bias.data.add_(1)
            optimizer.zero_grad()
            entry.loss(model, entry.batch()).backward()
            optimizer.step()
    assert [c.name for c in caught.value.changes] == ["trunk.0.0.weight", "main.1.bias"]
    assert guard.report.steps == 3


def test_two_models_of_one_class() -> None:
    one, other = flagged(), flagged()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard([one, other]) as guard:
        train(one, head_optimizer(one), 2)
        train(other, head_optimizer(other), 1, {1: nudge})
    assert [c.name for c in caught.value.changes] == ["Sequential[1].backbone.0.weight"]
    assert guard.report.frozen == 28


def test_guards_of_two_models_of_one_class_do_not_mix() -> None:
    one, other = flagged(), flagged()
    with (
        warnings.catch_warnings(),
        fl.guard(one) as first,
        fl.guard(other, on_change="warn") as second,
    ):
        warnings.simplefilter("ignore", FrostlineWarning)
        mine, theirs = head_optimizer(one), head_optimizer(other)
        train(one, mine, 2)
        train(other, theirs, 3, {3: nudge})
    assert (first.report.steps, first.report.ok) == (2, True)
    assert (second.report.steps, second.report.ok) == (3, False)


def test_a_restoring_guard_around_a_warning_one() -> None:
    model = flagged()
    before = backbone_bits(model)
    with (
        warnings.catch_warnings(),
        fl.guard(model, on_change="restore") as outer,
        fl.guard(model, on_change="warn") as inner,
    ):
        warnings.simplefilter("ignore", FrostlineWarning)
        train(model, head_optimizer(model), 4, {2: nudge})
    assert backbone_bits(model) == before
    assert [len(g.report.changes) for g in (outer, inner)] == [1, 0]


@pytest.mark.parametrize("pinpoint", [False, True])
def test_each_thread_trains_and_guards_its_own_model(pinpoint: bool) -> None:
    before = globals_of_torch()
    reports: dict[int, fl.types.GuardReport] = {}
    errors: dict[int, BaseException] = {}
    models = [flagged() for _ in range(4)]

    def work(number: int) -> None:
        model = models[number]
        try:
            with fl.guard(model, pinpoint=pinpoint and number == 0) as guard:
                train(model, head_optimizer(model), 6, {4: nudge} if number % 2 else None)
        except BaseException as error:
            errors[number] = error
        reports[number] = guard.report

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(errors) == [1, 3]
    assert all(isinstance(error, FrozenStateChanged) for error in errors.values())
    assert [reports[n].steps for n in range(4)] == [6, 4, 6, 4]
    assert [reports[n].ok for n in range(4)] == [True, False, True, False]
    assert globals_of_torch() == before


def test_a_write_from_another_thread_is_seen() -> None:
    model, part = frozen()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(part):
        optimizer = head_optimizer(model)
        train(model, optimizer, 1)
        thread = threading.Thread(target=nudge, args=(model,))
        thread.start()
        thread.join()
        train(model, optimizer, 1)
        pytest.fail("the second step has to see it")
    assert caught.value.changes[0].step == 2
