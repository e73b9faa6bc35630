"""Where tensors that moved stand in the plots."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.reports.audit_drift import high, plot

MOVES = st.floats(min_value=0, allow_nan=False, allow_infinity=False) | st.sampled_from(
    ["inf", "nan"]
)


def test_the_axis_has_powers_of_ten_and_the_largest_is_first() -> None:
    drawn = plot({"a.mean": 1e-4, "b.mean": 1.0, "c.mean": 1e-2, "d.mean": 0.0})
    assert drawn["ticks"] == [("1e-4", 0), ("1e-3", 25), ("0.01", 50), ("0.1", 75), ("1", 100)]
    assert [(row["name"], row["by"], row["at"]) for row in drawn["rows"]] == [
        ("b.mean", "1", 100),
        ("c.mean", "0.01", 50),
        ("a.mean", "0.0001", 0),
        ("d.mean", "0", 0),
    ]
    assert [dot["x"] for dot in drawn["dots"]] == [0, 33.33, 66.67, 100]
    assert high(100) < high(0)


def test_what_is_not_finite_is_largest_and_said() -> None:
    drawn = plot({"a.w": 3.0, "b.w": "nan", "c.w": "inf"})
    assert [(row["by"], row["at"]) for row in drawn["rows"][:2]] == [("not finite", 100)] * 2


def test_counters_are_counted_and_left_out() -> None:
    drawn = plot({"a.num_batches_tracked": 1.0, "num_batches_tracked": 1.0, "a.running_mean": 0.1})
    assert drawn["counters"] == 2
    assert [row["name"] for row in drawn["rows"]] == ["a.running_mean"]


@pytest.mark.parametrize(
    ("names", "kinds"),
    [("ab", ["a", "b"]), ("abc", ["a", "b", "c"]), ("aabbcd", ["a", "b", "others"])],
)
def test_at_most_three_kinds_have_colours(names: str, kinds: list[str]) -> None:
    drawn = plot({f"m{i}.{name}": 1.0 for i, name in enumerate(names)})
    assert drawn["kinds"] == kinds
    assert {dot["kind"] for dot in drawn["dots"]} == set(range(len(kinds)))


def test_many_are_cut_and_counted() -> None:
    drawn = plot({f"m{i}.w": float(i + 1) for i in range(3000)})
    assert (len(drawn["rows"]), drawn["left"], len(drawn["dots"])) == (300, 2700, 2000)
    assert min(float(dot["by"]) for dot in drawn["dots"]) > 999


@given(st.dictionaries(st.text(max_size=5), MOVES, max_size=20))
def test_every_place_is_on_the_plot(drift: dict[str, float | str]) -> None:
    drawn = plot(drift)
    places = [*drawn["rows"], *drawn["dots"]]
    assert all(0 <= one["at"] <= 100 for one in places)
    assert all(0 <= at <= 100 for _, at in drawn["ticks"])
    assert len(drawn["ticks"]) <= 7
    order = [one["at"] for one in drawn["rows"]]
    assert order == sorted(order, reverse=True)
