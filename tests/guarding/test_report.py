"""How an alarm and a report read: 80 columns, collapsed, complete; and wrong calls answered."""

from __future__ import annotations

import gc
import json
import re
import string
import warnings
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import LBFGS, SGD, Adam

import frostline as fl
from frostline._results import WIDTH, Change
from frostline.errors import (
    FreezeError,
    FrostlineWarning,
    FrozenStateChanged,
    ModelGone,
    PagesUnavailable,
    SelectionError,
)
from frostline.guarding import telling
from frostline.guarding.report import Finding, GuardReport, Idle, Tier
from tests.guarding.loops import ENTRY, flagged, frozen, head_optimizer, model_of, nudge, train

# --- 80 columns, whatever is in it -------------------------------------------------------------

_part = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=24)
names = st.lists(_part, min_size=1, max_size=9).map(".".join)
counts = st.one_of(st.none(), st.integers(0, 10**13))
sizes = st.one_of(st.none(), st.floats(0), st.just(float("nan")))
steps = st.one_of(st.none(), st.integers(0, 10**9))
words = st.lists(st.text(string.ascii_letters + "-,()=", min_size=1, max_size=20), max_size=30)
sentences = words.map(" ".join)
changes = st.builds(
    Change,
    names,
    st.sampled_from(["value", "dtype", "shape", "missing", "requires_grad"]),
    step=steps,
    cause=st.one_of(sentences.filter(bool), names.map("{} was written in place".format)),
    max_abs=sizes,
    changed_elements=counts,
    elements=counts,
    since=steps,
    mend=st.one_of(st.none(), sentences, names.map("fl.freeze(model, {!r})".format)),
)
tiers = st.builds(
    Tier,
    st.sampled_from(["preflight", "identity", "pages", "content", "full check"]),
    st.booleans(),
    counts.map(lambda n: n or 0),
    counts.map(lambda n: n or 0),
    st.integers(0, 10**9),
    st.floats(0, 1e6),
    sentences,
    sentences,
    sentences,
)
reports = st.builds(
    GuardReport,
    names,
    st.integers(0, 10**6),
    st.integers(0, 10**13),
    steps=st.integers(0, 10**9),
    changes=st.lists(changes, max_size=20),
    tiers=st.lists(tiers, max_size=5),
    unchanged=st.booleans(),
    preflight=st.lists(st.builds(Finding, names, sentences, sentences), max_size=4),
    idle=st.lists(st.builds(Idle, names, st.sampled_from(["no gradient", "unknown"])), max_size=9),
    notes=st.lists(sentences, max_size=3),
    windows=st.lists(sentences, max_size=3),
    nothing_ran=st.booleans(),
)


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


@settings(max_examples=40, deadline=None)
@given(reports)
def test_a_report_is_never_wider_than_80_columns(report: GuardReport) -> None:
    assert widest(str(report)) <= WIDTH
    assert json.loads(json.dumps(report.to_dict()))["target"] == report.target
    assert report._repr_html_().startswith("<pre>GuardReport")


@settings(max_examples=40, deadline=None)
@given(st.lists(changes, min_size=1, max_size=40), reports, st.booleans())
def test_an_alarm_is_never_wider_than_80_columns(
    found: list[Change], report: GuardReport, pinpointed: bool
) -> None:
    text = telling.alarm(found, report, pinpointed)
    assert widest(text) <= WIDTH
    # An end is what tells apart the tensors of a module.
    for change in found[:1]:
        assert change.name[-8:] in text


LONG = "base_model.model.vision_model.encoder.layers.{}.self_attn.q_proj.base_layer.weight"


def test_numbers_give_way_before_the_name_does() -> None:
    found = Change(LONG.format(0), "value", step=10**9, since=10**8, max_abs=1e-100,
                   changed_elements=10**12, elements=10**12)  # fmt: skip
    row = telling.alarm([found], GuardReport("encoder", 1, 1), False).splitlines()[2]
    assert len(row) <= WIDTH
    assert "q_proj.base_layer.weight" in row
    assert row.endswith("steps 100000001-1000000000")


def alarm_of(count: int) -> str:
    found = [
        Change(LONG.format(n), "value", step=3, cause="it was so", max_abs=0.1,
               changed_elements=4096, elements=4096, mend="do so", since=2)
        for n in range(count)
    ]  # fmt: skip
    return telling.alarm(found, GuardReport("encoder", 300, 10**9, steps=3), False)


def test_names_are_shortened_in_the_middle() -> None:
    text = alarm_of(1)
    row = text.splitlines()[2]
    assert len(LONG.format(0)) > WIDTH
    assert re.match(r"  base_model\S*…\S*q_proj\.base_layer\.weight +4,096 of 4,096", row)
    assert row.endswith("step 3")


def test_many_siblings_are_told_once_and_counted() -> None:
    lines = alarm_of(40).splitlines()
    assert lines[0] == "40 of 300 frozen tensors changed"
    assert len(lines) < 22
    assert "29 more tensors" in "\n".join(lines)
    assert sum("it was so" in line for line in lines) == 1
    assert sum("do so" in line for line in lines) == 1


# --- what a real alarm has ---------------------------------------------------------------------


def test_an_alarm_says_all_that_the_promise_names() -> None:
    model = flagged()
    model.backbone[1].train()
    with pytest.raises(FrozenStateChanged) as caught, fl.guard(model):
        train(model, head_optimizer(model), 1)
    text = str(caught.value)
    assert widest(text) <= WIDTH
    assert text.splitlines()[0] == "3 of 14 frozen tensors changed"
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert f"backbone.1.{name}" in text
    assert re.search(r"running_mean +16 of 16 +by up to [\d.]+ +step 1", text)
    assert re.search(r"num_batches_tracked +1 of 1 +by up to 1 +step 1", text)
    assert text.count("  cause  ") == 1
    assert "training mode" in text
    assert "  mend   fl.freeze(model" in text
    assert text.endswith("  line   run again with pinpoint=True")


def test_a_report_of_a_clean_run() -> None:
    model, part = frozen()
    with fl.guard(part) as guard:
        train(model, head_optimizer(model), 3)
    lines = str(guard.report).splitlines()
    assert lines[0].startswith('GuardReport  "backbone" of Sequential')
    assert "unchanged, every byte: 14 frozen tensors, 2.4 kB, over 3 steps" in lines[1]
    assert [line.split()[0] for line in lines[3:] if not line.startswith("   ")] == [
        "preflight",
        "identity",
        "pages",
        "content",
        "full",
    ]
    assert widest(str(guard.report)) <= WIDTH
    assert repr(guard.report) == '<GuardReport "backbone" of Sequential, 3 steps, ok>'


def test_a_report_is_no_truth_value() -> None:
    model, part = frozen()
    with fl.guard(part) as guard:
        train(model, head_optimizer(model), 1)
    with pytest.raises(TypeError, match=r"a GuardReport is not a truth value; use \.ok"):
        bool(guard.report)


def test_a_report_as_json() -> None:
    model = flagged()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrostlineWarning)
        with fl.guard(model, on_change="restore") as guard:
            train(model, head_optimizer(model), 2, {2: nudge})
    found = json.loads(json.dumps(guard.report.to_dict()))
    assert (found["version"], found["ok"], found["steps"], found["frozen"]) == (1, False, 2, 14)
    assert [c["name"] for c in found["changes"]] == ["backbone.0.weight"]
    assert found["windows"] == guard.report.windows != []
    assert {tier["name"] for tier in found["tiers"]} >= {"identity", "pages", "content"}


# --- preflight and idle ------------------------------------------------------------------------


def norms_in_training_mode(model: nn.Module) -> torch.optim.Optimizer:
    model.backbone.train()
    return head_optimizer(model)


def gradient_in_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    model.backbone[0].weight.grad = torch.ones(16, 12)
    return SGD(model.parameters(), lr=0.1, weight_decay=0.01)


def frozen_in_lbfgs(model: nn.Module) -> torch.optim.Optimizer:
    return LBFGS(model.parameters(), max_iter=1)


def shared_bytes(model: nn.Module) -> torch.optim.Optimizer:
    model.head.bias = nn.Parameter(model.backbone[0].bias.data[:5])
    return head_optimizer(model)


WEIGHTS, BIASES = "backbone.{0-1,3-4}.weight", "backbone.{0-1,3-4}.bias"

MISTAKES: list[tuple[Any, list[str], str]] = [
    (norms_in_training_mode, ["backbone.{1,4}"], "2 norms in training mode"),
    (gradient_in_optimizer, ["backbone.0.weight"], "in a group of SGD and has .grad"),
    (gradient_in_optimizer, ["backbone.0.weight"], "is frozen and has a gradient from before"),
    (frozen_in_lbfgs, [WEIGHTS, BIASES], "LBFGS writes to all it was given"),
    (shared_bytes, ["backbone.0.bias"], "shares bytes with head.bias"),
]


@pytest.mark.parametrize(("mistake", "names", "what"), MISTAKES)
def test_preflight_names_the_mistake_before_the_first_step(
    mistake: Any, names: list[str], what: str
) -> None:
    model = flagged()
    optimizer = mistake(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrostlineWarning)
        with fl.guard(model, on_change="warn") as guard:
            ENTRY.loss(model, ENTRY.batch()).backward()
            optimizer.step(lambda: ENTRY.loss(model, ENTRY.batch()))
    found = [f for f in guard.report.preflight if what in f.what]
    assert [f.name for f in found] == names
    assert found[0].mend
    assert what.split()[0] in str(guard.report)


def unused(model: nn.Module) -> torch.optim.Optimizer:
    model.extra = nn.Linear(2, 2, bias=False)
    return SGD([*model.head.parameters(), model.extra.weight], lr=0.1)


def forgotten(model: nn.Module) -> torch.optim.Optimizer:
    return SGD([model.head.weight], lr=0.1)


def detached(model: nn.Module) -> torch.optim.Optimizer:
    with torch.no_grad():
        model.head.weight.zero_()
    model.head.weight.register_hook(torch.zeros_like)
    return SGD(model.head.parameters(), lr=0.1)


IDLE: list[tuple[Any, list[tuple[str, str]]]] = [
    (head_optimizer, []),
    (unused, [("extra.weight", "no gradient")]),
    (forgotten, [("head.bias", "in no optimizer")]),
    (detached, [("head.weight", "gradient was zero")]),
]


@pytest.mark.parametrize(("make", "expected"), IDLE)
def test_idle_is_what_was_to_be_trained_and_was_not(
    make: Any, expected: list[tuple[str, str]]
) -> None:
    model = flagged()
    if make is unused:
        model.extra = None
    optimizer = make(model)
    with fl.guard(model) as guard:
        for _ in range(3):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(
                model.head(model.backbone(ENTRY.batch()[0])), ENTRY.batch()[1]
            ).backward()
            optimizer.step()
    assert [(entry.name, entry.reason) for entry in guard.report.idle] == expected
    assert ("never changed, though trainable" in str(guard.report)) is bool(expected)


@pytest.mark.parametrize("name", ["resnet18", "bert", "lstm"])
def test_a_right_setup_gives_no_findings(name: str) -> None:
    from tests.zoo import ZOO

    entry, model = ZOO[name], model_of(name)
    part = fl.freeze(model, entry.backbone)
    optimizer = Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with fl.guard(part) as guard:
        for _ in range(2):
            optimizer.zero_grad()
            entry.loss(model, entry.batch()).backward()
            optimizer.step()
    assert guard.report.preflight == []
    assert guard.report.ok


# --- wrong calls -------------------------------------------------------------------------------


def undone() -> fl.types.FrozenPart:
    _, part = frozen()
    part.undo()
    return part


def head_of_a_backbone() -> fl.types.FreezeGuard:
    _model, part = frozen()
    return fl.guard(part, "head")


def part_of_a_model_that_is_gone() -> fl.types.FreezeGuard:
    part = frozen()[1]
    gc.collect()
    return fl.guard(part)


def in_shared_memory() -> fl.types.FreezeGuard:
    model = flagged()
    model.backbone[0].weight.data.share_memory_()
    return fl.guard(model, proof="pages").__enter__()


WRONG: list[tuple[Any, type[Exception], str]] = [
    (lambda: fl.guard(model_of()), SelectionError, "nothing in Sequential is frozen"),
    (
        lambda: fl.guard(model_of(), "bckbone"),
        SelectionError,
        'in Sequential, "bckbone" matches nothing',
    ),
    (lambda: fl.guard(flagged(), overhead="1%"), TypeError, "overhead='1%': expected a fraction"),
    (lambda: fl.guard(flagged(), overhead=True), TypeError, "overhead=True: expected a fraction"),
    (lambda: fl.guard(flagged(), overhead=1.5), ValueError, "overhead=1.5: expected a fraction"),
    (lambda: fl.guard(flagged(), overhead=-1), ValueError, "overhead=-1: expected a fraction"),
    (
        lambda: fl.guard(flagged(), overhead=float("nan")),
        ValueError,
        "overhead=nan: expected a fraction",
    ),
    (
        lambda: fl.guard(flagged(), on_change="stop"),
        ValueError,
        "on_change='stop': expected 'raise', 'warn', 'restore' or 'rewind'",
    ),
    (
        lambda: fl.guard(flagged(), on_change="collect"),
        ValueError,
        "on_change='collect': expected 'raise'",
    ),
    (
        lambda: fl.guard(flagged(), on_change=None),
        ValueError,
        "on_change=None: expected 'raise'",
    ),
    (lambda: fl.guard(flagged(), pinpoint="yes"), ValueError, "pinpoint='yes': expected True"),
    (lambda: fl.guard(flagged(), pinpoint=1), ValueError, "pinpoint=1: expected True"),
    (
        lambda: fl.guard(flagged(), pinpoint="auto"),
        ValueError,
        "pinpoint='auto' looks at the steps after an alarm, and on_change='raise' ends there",
    ),
    (lambda: fl.guard(flagged(), proof="page"), ValueError, "proof='page': expected 'auto'"),
    (lambda: fl.guard("backbone"), TypeError, "guard got a str, no FrozenPart and no model"),
    (lambda: fl.guard(None), TypeError, "guard got a NoneType, no FrozenPart and no model"),
    (
        lambda: fl.guard("backbone", model_of()),
        TypeError,
        "the arguments of guard are swapped: write fl.guard(model, 'backbone')",
    ),
    (lambda: fl.guard(model_of().state_dict()), TypeError, "guard got a OrderedDict"),
    (lambda: fl.guard(torch.ones(2)), TypeError, "guard got a Tensor, no FrozenPart"),
    (lambda: fl.guard(model_of().parameters()), TypeError, "guard got a generator"),
    (
        lambda: fl.guard(SGD(model_of().parameters(), 0.1)),
        TypeError,
        "guard got a SGD, no FrozenPart and no model: optimizers introduce themselves",
    ),
    (lambda: fl.guard([]), SelectionError, "the list of parts is empty"),
    (lambda: fl.guard(undone()), FreezeError, "<FrozenPart"),
    (lambda: fl.guard(nn.ReLU(), "**"), SelectionError, '"**" of ReLU has no tensors'),
    (head_of_a_backbone, SelectionError, '"head" selects nothing that'),
    (in_shared_memory, PagesUnavailable, "backbone.0.weight: "),
    (part_of_a_model_that_is_gone, ModelGone, "the model of this FrozenPart"),
]


@pytest.mark.parametrize(("call", "kind", "beginning"), WRONG)
def test_wrong_calls_are_answered(call: Any, kind: type[Exception], beginning: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(beginning)
    assert len(str(caught.value)) > 30
