"""``pinpoint=True`` from the user's side: the alarm names the file and the line that wrote."""

from __future__ import annotations

import ctypes
import inspect
import re
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Adam, Optimizer

import frostline as fl
from frostline.errors import FrozenStateChanged
from tests.guarding import loops
from tests.guarding.loops import ENTRY, flagged, head_optimizer, train

MARK = "# <-"


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.clamp_(-0.01, 0.01)  # <-


def by_data(model: nn.Module) -> None:
    weight = model.backbone[0].weight
    weight.data += 1  # <-
    weight.data -= 0.5


def rebound(model: nn.Module) -> None:
    model.backbone[0].weight.data = torch.zeros(16, 12)  # <-


def replaced(model: nn.Module) -> None:
    model.backbone[0].bias = nn.Parameter(torch.ones(16), requires_grad=False)  # <-


def loaded(model: nn.Module) -> None:
    state = ENTRY.make().backbone.state_dict()
    model.backbone.load_state_dict(state)  # <-


def by_numpy(model: nn.Module) -> None:
    array = model.backbone[0].weight.detach().numpy()
    array[0] = 3.0  # <-
    del array


def by_ctypes(model: nn.Module) -> None:
    address = model.backbone[0].weight.data_ptr()
    ctypes.memset(address, 1, 64)  # <-


def evaluate(model: nn.Module) -> None:
    with torch.no_grad():
        model(ENTRY.batch()[0])  # <-


def statistics(model: nn.Module) -> None:
    model.backbone[1].train()
    evaluate(model)
    model.backbone[1].eval()


def exponential_average(model: nn.Module) -> None:
    twin = ENTRY.make()
    with torch.no_grad():
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.mul_(0.9).add_(q, alpha=0.1)  # <-


def of(function: Callable[..., object]) -> int:
    """The marked line of a function."""
    lines, first = inspect.getsourcelines(function)
    return first + next(n for n, line in enumerate(lines) if line.rstrip().endswith(MARK))


DEEDS = {
    in_place: in_place,
    by_data: by_data,
    rebound: rebound,
    replaced: replaced,
    loaded: loaded,
    by_numpy: by_numpy,
    by_ctypes: by_ctypes,
    statistics: evaluate,
    exponential_average: exponential_average,
}


@pytest.mark.parametrize(("deed", "where"), DEEDS.items(), ids=lambda f: f.__name__)
def test_the_line_that_wrote(deed: loops.Deed, where: Callable[..., object]) -> None:
    model = flagged()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(model, pinpoint=True) as guard:
        train(model, head_optimizer(model), 3, {2: deed})
    lines = {change.culprit for change in caught.value.changes}
    assert lines == {f"tests/guarding/test_pinpoint_guard.py:{of(where)}"}
    assert {change.step for change in guard.report.changes} == {2}
    assert re.search(
        rf"line +tests/guarding/test_pinpoint_guard\.py:{of(where)}", str(caught.value)
    )
    assert "pinpoint=True" not in str(caught.value)


@pytest.mark.parametrize("how", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_an_optimizers_write_is_the_line_that_called_it(how: dict[str, bool]) -> None:
    model = flagged()
    optimizer: Optimizer = Adam(model.parameters(), **how)
    for p in model.backbone.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(model, pinpoint=True):
        one_step(model, optimizer)
    assert len(caught.value.changes) == 8
    assert {c.culprit for c in caught.value.changes} == {
        f"tests/guarding/test_pinpoint_guard.py:{of(one_step)}"
    }


def one_step(model: nn.Module, optimizer: Optimizer) -> None:
    for p in model.head.parameters():
        p.grad = None
    ENTRY.loss(model, ENTRY.batch()).backward()
    optimizer.step()  # <-


def test_without_pinpointing_the_alarm_says_how_to_get_the_line() -> None:
    model = flagged()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(model):
        train(model, head_optimizer(model), 2, {2: by_data})
    assert caught.value.changes[0].culprit is None
    assert "line   run again with pinpoint=True" in str(caught.value)


def test_a_clean_run_blames_nobody() -> None:
    model = flagged()
    with fl.guard(model, pinpoint=True) as guard:
        train(model, head_optimizer(model), 3)
    assert guard.report.ok
    assert not guard.report.notes
