"""The tables of "who catches what": computed again, and right where they speak of us."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frostline.guarding.pages.kernel import why_unavailable
from tests.guarding import who_catches_packages as packages
from tests.guarding.who_catches import PAGE, page
from tests.guarding.who_catches_changes import CHANGES, Change, Live
from tests.guarding.who_catches_columns import (
    OTHERS,
    OWN,
    RIGHT,
    WORDS,
    by_value,
    cell,
    sees,
    tier_columns,
    verdict,
)
from tests.guarding.who_catches_writes import DeclaredWrites, lines, signs, ways

BY_NAME = {change.name: change for change in CHANGES}
by_name = pytest.mark.parametrize("change", CHANGES, ids=BY_NAME)


@pytest.mark.skipif(why_unavailable() is not None, reason="the page shows what pages see")
def test_the_page_is_what_is_computed() -> None:
    assert PAGE.read_text() == page(), "run: python tests/guarding/who_catches.py"


@by_name
@pytest.mark.parametrize("column", OWN)
def test_ours_are_right(column: str, change: Change) -> None:
    assert cell(column, change) in RIGHT


@by_name
@torch.no_grad()
def test_a_row_does_what_it_says(change: Change, tmp_path: Path) -> None:
    """Against the slow truth: all bytes, dtypes and shapes before and after."""
    live = Live(tmp_path, change.with_nan, change.mapped)
    before = live.bytes()
    change.do(live)
    assert (live.bytes() != before) == change.changed


@pytest.mark.parametrize("column", OTHERS)
def test_every_other_column_is_wrong_somewhere_and_right_somewhere(column: str) -> None:
    """What is never wrong would be no reason for us; what never works is used wrongly by us."""
    found = {cell(column, change) in RIGHT for change in CHANGES}
    assert found == {True, False}


@pytest.mark.parametrize("change", ["write by .data", "nothing"])
def test_a_tier_is_no_own_column(change: str) -> None:
    assert not tier_columns().keys() & (OWN.keys() | OTHERS.keys())
    for watch in tier_columns().values():
        assert isinstance(sees(watch, BY_NAME[change]), bool)


VERDICTS = [
    (True, True, False, "yes"),
    (True, True, True, "yes*"),
    (True, False, False, "MISS"),
    (False, True, True, "false alarm"),
    (False, False, False, "silent"),
]


@pytest.mark.parametrize(("changed", "seen", "anyway", "word"), VERDICTS)
def test_the_word(changed: bool, seen: bool, anyway: bool, word: str) -> None:
    assert verdict(changed, seen, anyway) == word
    assert word in WORDS


def test_one_who_never_looks_and_one_who_always_cries_are_wrong() -> None:
    """The harness itself can tell."""
    blind = by_value(lambda live: None)
    nervous = by_value(lambda live: object())
    assert not sees(blind, BY_NAME["write by .data"])
    assert sees(nervous, BY_NAME["nothing"])


def test_the_packages_were_run_on_these_rows() -> None:
    found = packages.results()
    assert found.keys() == packages.TOOLS.keys()
    for name, said in found.items():
        assert said["cells"].keys() == BY_NAME.keys(), f"{name}: run with --packages VENV"
        assert set(said["cells"].values()) <= WORDS.keys()
        assert ("not installed" in said["cells"].values()) == (said["version"] is None)


# --- ways to write -----------------------------------------------------------------------------

# What of the second table somebody relies on: version, address, dispatch, bytes.
KNOWN = {
    "no_grad add_": (True, False, True, True),
    ".data add_": (False, False, True, True),
    "numpy": (False, False, False, True),
    ".data = new": (False, True, False, True),
    "adds 0": (True, False, True, False),
    "functional_call": (False, False, False, False),
    "batch_norm": (False, False, False, True),
    "SGD": (True, False, True, True),
    "SGD fused": (False, False, True, True),
    "undeclared": (False, False, False, True),
    "mapped file edited": (False, False, False, True),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_signs_of(name: str) -> None:
    (way,) = [way for way in ways() if way.name == name]
    assert signs(way) == KNOWN[name]


def test_every_way_is_on_one_line() -> None:
    listed = sorted((line.group, name) for line in lines() for name in line.names)
    assert listed == sorted((way.group, way.name) for way in ways())


def test_no_sign_is_right_everywhere() -> None:
    found = list(lines())
    for position in range(3):
        assert any(line.signs[position] != line.signs.bytes for line in found)
        assert any(line.signs[position] == line.signs.bytes for line in found)


def test_declared_writes_are_those_of_the_schema() -> None:
    one, two = torch.zeros(2), torch.zeros(2)
    with DeclaredWrites() as mode:
        torch.add(one, two)
        assert mode.written == set()
        torch._foreach_add_([one], 1.0)
        torch.add(one, 1, out=two)
    assert mode.written == {t.untyped_storage().data_ptr() for t in (one, two)}
