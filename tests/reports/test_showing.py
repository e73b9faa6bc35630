"""What is shown of names of others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.reports.showing import listed, short, shown, size
from tests.reports.audit_results import HOSTILE


@given(st.text(), st.integers(8, 60))
def test_what_is_shown_cannot_act_and_is_bounded(text: str, longest: int) -> None:
    told = shown(text, longest)
    assert told.isprintable()
    assert len(told) <= longest
    told.encode()
    if text.isprintable() and len(text) <= longest:
        assert told == text


def test_what_acts_is_written_as_python_writes_it() -> None:
    assert shown("a\x1b[31m\u202e\u2028\ud800\nb") == r"a\x1b[31m\u202e\u2028\ud800\nb"
    assert shown("größe שלום 層") == "größe שלום 層"
    assert (shown("x" * 200), shown("x" * 201)) == ("x" * 200, "x" * 66 + "…" + "x" * 133)


def test_hostile_names_can_be_listed() -> None:
    found = listed([*HOSTILE, "layer.1", "layer.2"], most=len(HOSTILE) + 1)
    assert found.patterns[-1] == ("layer.{1-2}", 2)
    assert (found.count, found.left) == (len(HOSTILE) + 2, 0)


@pytest.mark.parametrize(
    ("count", "told"),
    [(999, "999"), (999.6, "1 K"), (1000, "1 K"), (99_940, "99.9 K"), (999_600, "1 M"), (0, "0")],
)
def test_short_counts_round_to_the_next_unit(count: float, told: str) -> None:
    assert short(count) == told


@pytest.mark.parametrize(
    ("count", "told"),
    [(1023, "1023 B"), (1024, "1 KiB"), (1023.6 * 1024, "1 MiB"), (70e9 * 2, "130 GiB")],
)
def test_sizes_round_to_the_next_unit(count: float, told: str) -> None:
    assert size(count) == told
