"""What all results share, and a change in 80 columns."""

from __future__ import annotations

import json
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline._results import WIDTH, Change, ChangeKind, Result, elide, plural

LONG = "base_model.model.vision_model.encoder.layers.23.self_attn.q_proj.base_layer.weight"


def test_no_truth_value() -> None:
    part = fl.freeze(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"a FrozenPart is not a truth value; use \.ok"):
        bool(part)
    with pytest.raises(TypeError, match=r"use \.ok"):
        assert part
    with pytest.raises(TypeError, match=r"a Manifest is not a truth value"):
        bool(fl.manifest(nn.Linear(2, 2)))


def test_html_is_escaped() -> None:
    class Bad(Result):
        def __str__(self) -> str:
            return "<script> & co"

    assert Bad()._repr_html_() == "<pre>&lt;script&gt; &amp; co</pre>"


def test_a_result_that_forgot_to_dict() -> None:
    with pytest.raises(NotImplementedError):
        Result().to_dict()


@pytest.mark.parametrize("kind", get_args(ChangeKind))
def test_a_change_fits_into_a_line(kind: ChangeKind) -> None:
    change = Change(LONG, kind)
    assert len(str(change)) <= WIDTH
    assert str(change).startswith("base_model")
    assert "base_layer.weight" in str(change)
    assert kind in str(change)


def test_a_change_with_numbers() -> None:
    change = Change("bn.running_mean", "value", max_abs=0.0123456, changed_elements=3)
    assert str(change).split() == [
        *("bn.running_mean", "value"),
        *("3", "changed", "by", "up", "to", "0.0123"),
    ]


@pytest.mark.parametrize(
    "change",
    [
        Change(LONG, "value", max_abs=1.234e-7, changed_elements=1234),
        Change(LONG, "value", max_abs=1.0, changed_elements=16),
        Change(LONG, "mode", cause="is not held: replaced after freezing"),
        Change(LONG, "cast", "report", cause="torch.float32 -> torch.bfloat16"),
    ],
    ids=lambda change: change.kind,
)
def test_a_change_fits_into_a_line_of_the_alarm(change: Change) -> None:
    assert len(f"  {change}") <= WIDTH


def test_to_dict_is_json() -> None:
    change = Change("a", "cast", "report", step=3, cause="c", culprit="f.py:1", max_abs=1.5)
    again = json.loads(json.dumps(change.to_dict()))
    assert Change(**again) == change


@settings(deadline=None)
@given(st.text("abc.", max_size=120), st.integers(4, 80))
def test_elide(name: str, width: int) -> None:
    short = elide(name, width)
    assert len(short) <= width
    if len(name) <= width:
        assert short == name
        return
    head, _, tail = short.partition("…")
    assert len(short) == width
    assert name.startswith(head)
    assert name.endswith(tail)
    assert len(tail) >= len(head)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 tensors"), (1, "1 tensor"), (2, "2 tensors"), (12345, "12,345 tensors")],
)
def test_plural(count: int, text: str) -> None:
    assert plural(count, "tensor") == text
