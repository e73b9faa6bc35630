# ruff: noqa: PT012  (what is guarded is a block, and the test is where in it the alarm comes)
"""What is no alarm does not end the watch: after casts, loads, moves and exchanges writes are told.

Each first event is silent, or told as a report; the write that follows it is drift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import SGD

import frostline as fl
from frostline.errors import FrozenStateChanged
from frostline.guarding.pages.kernel import why_unavailable
from tests.guarding.loops import (
    Deed,
    backbone_bits,
    flagged,
    frozen,
    head_optimizer,
    nudge,
    told,
    train,
)

needs_pages = pytest.mark.skipif(why_unavailable() is not None, reason="the kernel cannot witness")


# --- after an event that is no drift -----------------------------------------------------------


def rounded_to_half(model: nn.Module) -> nn.Module:
    """Every value is one that half precision keeps, so that a cast there and back loses nothing."""
    for t in (*model.backbone.parameters(), *model.backbone.buffers()):
        if t.is_floating_point():
            t.data.copy_(t.data.half().float())
    return model


def load_equal_values_by_assignment(model: nn.Module) -> None:
    state = {k: v.clone() for k, v in model.backbone.state_dict().items()}
    model.backbone.load_state_dict(state, assign=True)
    model.backbone.requires_grad_(False)


def cast_there_and_back(model: nn.Module) -> None:
    model.backbone.half()
    model.backbone.float()


def cast(model: nn.Module) -> None:
    model.backbone[0].double()


def move(model: nn.Module) -> None:
    model.backbone[0].weight.data = model.backbone[0].weight.data.clone()


def exchange(model: nn.Module) -> None:
    weight = model.backbone[0].weight
    model.backbone[0].weight = nn.Parameter(weight.detach().clone(), requires_grad=False)


# The event, and the kinds of what is told of it.
EVENTS: dict[Deed, set[str]] = {
    load_equal_values_by_assignment: {"replaced"},
    cast_there_and_back: {"replaced"},  # of buffers `float` makes new ones
    move: set(),
    exchange: {"replaced"},
}


@pytest.mark.parametrize("proof", ["auto", "content"])
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: event.__name__)
def test_a_write_after_an_event_is_drift(event: Deed, proof: str) -> None:
    model = rounded_to_half(flagged())
    optimizer = head_optimizer(model)
    with told(), fl.guard(model, on_change="warn", proof=proof) as guard:
        train(model, optimizer, 3, {2: event})
        before = list(guard.report.changes)
        train(model, optimizer, 1, {1: nudge})
    assert {(c.kind, c.severity) for c in before} == {(k, "report") for k in EVENTS[event]}
    (change,) = guard.report.drift
    assert (change.name, change.kind, change.step) == ("backbone.0.weight", "value", 4)
    assert change.max_abs == pytest.approx(1.0)


def test_a_write_after_a_cast_that_the_seal_proves_is_drift() -> None:
    model, part = frozen()
    with told(), fl.guard(part, on_change="warn") as guard:
        train(model, head_optimizer(model), 1)
        cast(model)
        guard.check()
        before = [(c.name, c.kind, c.severity) for c in guard.report.changes]
        nudge(model)
        guard.check()
    assert before == [(f"backbone.0.{n}", "cast", "report") for n in ("weight", "bias")]
    assert [c.name for c in guard.report.drift] == ["backbone.0.weight"]


@pytest.mark.parametrize("proof", ["auto", "content"])
def test_a_row_of_a_coarse_embedding_is_no_cast(proof: str) -> None:
    """All values survive bfloat16, before and after: that alone does not make a write a cast."""
    net = nn.Sequential(nn.Embedding(20_000, 64), nn.Linear(64, 1))
    net[0].weight.data = net[0].weight.data.bfloat16().float()
    net[0].requires_grad_(False)
    with told(), fl.guard(net, on_change="warn", proof=proof) as guard:
        net(torch.arange(4)).sum().backward()
        SGD(net[1].parameters(), lr=0.1).step()
        net[0].weight.data[77] += 1000
        net[0].weight.data.copy_(net[0].weight.data.bfloat16().float())
    (change,) = guard.report.changes
    assert (change.name, change.kind, change.severity) == ("0.weight", "value", "drift")
    assert "cast" not in str(change.cause)


@needs_pages
def test_another_memory_format_within_a_guard_that_asked_for_pages() -> None:
    net = nn.Sequential(nn.Conv2d(16, 32, 3), nn.Conv2d(32, 4, 3))
    net[0].requires_grad_(False)
    optimizer = SGD(net[1].parameters(), lr=0.1)

    def step() -> None:
        net(torch.ones(1, 16, 8, 8)).sum().backward()
        optimizer.step()

    with told(), fl.guard(net, proof="pages", on_change="warn") as guard:
        step()
        net.to(memory_format=torch.channels_last)
        step()
        assert guard.report.changes == []
        net[0].weight.data[0, 0, 0, 0] += 1
        step()
    assert [(c.name, c.kind) for c in guard.report.changes] == [("0.weight", "value")]
    # What was asked for could not be kept up, and the report says of what.
    (pages,) = (tier for tier in guard.report.tiers if tier.name == "pages")
    assert "0.weight" in pages.why_not


# --- outputs that a module keeps ---------------------------------------------------------------


class Gate(nn.Module):
    """Keeps a loss beside its output, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)
        self.l_aux: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.gate(x)
        self.l_aux = h.pow(2).mean()
        return h


def _part(model: nn.Module) -> Any:
    return (fl.freeze(model, "body"),)


def _selected(model: nn.Module) -> Any:
    return model, "body"


def _by_flags(model: nn.Module) -> Any:
    model["body"].requires_grad_(False)
    return (model,)


WAYS = [_part, _selected, _by_flags]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("write", [False, True])
def test_an_output_that_a_module_keeps_is_no_alarm(way: Callable[..., Any], write: bool) -> None:
    model = nn.ModuleDict({"body": Gate(), "head": nn.Linear(4, 1)})
    before = nn.Linear(4, 4)  # trains, so that what is kept hangs in a graph
    optimizer = SGD([*model["head"].parameters(), *before.parameters()], lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model["head"](model["body"](before(torch.ones(2, 4)))).sum().backward()
        optimizer.step()

    step()
    with told(), fl.guard(*way(model), on_change="warn") as guard:
        for _ in range(18):
            step()
        if write:
            model["body"].gate.weight.data.mul_(1.5)
    assert [c.name for c in guard.report.changes] == ["body.gate.weight"] * write


# --- two tensors of one name -------------------------------------------------------------------


class Wrapped(nn.Module):
    """A bias of its own, and one in the layer that it wraps: wrappers left out, one name."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = nn.Linear(4, 4)
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.bias


WRITTEN = {
    "nothing": (lambda w: None, []),
    "outer": (lambda w: w.bias.data.add_(1), ["body.bias"]),
    "inner": (lambda w: w.base_layer.bias.data.add_(1), ["body.bias (inner)"]),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("written", WRITTEN)
def test_two_tensors_of_one_name(way: Callable[..., Any], written: str) -> None:
    write, names = WRITTEN[written]
    model = nn.ModuleDict({"body": Wrapped(), "head": nn.Linear(4, 1)})
    model["body"].requires_grad_(False)
    optimizer = SGD(model["head"].parameters(), lr=0.1)
    with told(), fl.guard(*way(model), on_change="warn") as guard:
        for number in range(3):
            if number == 1:
                write(model["body"])
            model["head"](model["body"](torch.ones(2, 4))).sum().backward()
            optimizer.step()
    assert guard.report.frozen == 3
    assert [c.name for c in guard.report.changes] == names
    assert guard.report.unchanged is (not names)


# --- restoring ---------------------------------------------------------------------------------


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2

    def right_inverse(self, y: Tensor) -> Tensor:
        return y / 2


def test_what_was_parametrised_meanwhile_is_missing_and_not_written() -> None:
    model = flagged()
    layer = model.backbone[0]
    before = layer.weight.detach().clone()
    with (
        pytest.raises(
            FrozenStateChanged, match=r"backbone\.0\.weight could not be put back"
        ) as got,
        told(),
        fl.guard(model, on_change="restore"),
    ):
        train(model, head_optimizer(model), 1)
        parametrize.register_parametrization(layer, "weight", Double())
        layer.requires_grad_(False)
        train(model, head_optimizer(model), 1)
    assert [(c.name, c.kind) for c in got.value.changes] == [("backbone.0.weight", "missing")]
    # The old weight's bytes would have been twice too large there.
    assert torch.equal(layer.parametrizations.weight.original, before / 2)
    assert torch.equal(layer.weight, before)


def test_statistics_restored_at_each_of_many_steps_are_told_once() -> None:
    model = flagged()
    before = backbone_bits(model)
    model.backbone.train()
    with told(), fl.guard(model, on_change="restore") as guard:
        train(model, head_optimizer(model), 300)
    assert len(guard.report.changes) == 6
    assert {c.step for c in guard.report.changes} == {1}
    assert backbone_bits(model) == before


@pytest.mark.parametrize("answer", ["restore", "rewind"])
def test_what_drifted_before_the_guard_cannot_be_put_back(answer: str) -> None:
    model, part = frozen()
    nudge(model)
    drifted = backbone_bits(model)
    with (
        pytest.raises(FrozenStateChanged, match="cannot be put back from here"),
        fl.guard(part, on_change=answer),
    ):
        pytest.fail("the entry tells of it")
    assert backbone_bits(model) == drifted


@pytest.mark.parametrize("answer", ["restore", "rewind"])
def test_what_drifted_before_it_was_thawed_is_warned_of(answer: str) -> None:
    model, part = frozen()
    optimizer = head_optimizer(model)
    with told() as caught, fl.guard(part, on_change=answer) as guard:
        train(model, optimizer, 1)
        frozen_bytes = model.backbone[0].weight.detach().clone()
        nudge(model)
        theirs = model.backbone[0].weight.detach().clone()
        assert fl.unfreeze(model, "backbone.0")
        train(model, optimizer, 1)
    assert [c.name for c in guard.report.drift] == ["backbone.0.weight"]
    assert len(caught) == 1
    # It was written while it was frozen, so that is put back before it is let go. Nothing is
    # rewound for it: the unfreezing would be undone.
    expected = frozen_bytes if answer == "restore" else theirs
    assert torch.equal(model.backbone[0].weight, expected)
    assert model.backbone[0].weight.requires_grad


def test_bytes_come_back_also_when_an_exception_ends_the_block() -> None:
    model = flagged()
    before = backbone_bits(model)
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught, fl.guard(model, on_change="restore"):
        train(model, head_optimizer(model), 1)
        nudge(model)
        raise error
    assert caught.value is error
    assert backbone_bits(model) == before
    assert "backbone.0.weight" in error.__notes__[0]
