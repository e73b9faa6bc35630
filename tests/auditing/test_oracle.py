"""The audit beside one real step, on random set-ups: what it says will change is what changes."""

from __future__ import annotations

import pytest

from frostline.auditing.rules import BY_CODE
from tests.auditing.oracle import FAST, SEEDS, SetUp
from tests.auditing.oracle_outcome import outcome
from tests.auditing.oracle_page import ENOUGH, PAGE, page, precision, read

# Warnings of torch about what a set-up does, such as one group with a parameter in two places.
pytestmark = pytest.mark.filterwarnings("ignore")
BY_SEED = {row["seed"]: row for row in read()}
STALE = "where the audit is right: python -m tests.auditing.oracle_page"
REST = [seed for seed in SEEDS if seed not in FAST]


def check(seed: int) -> None:
    """As it was recorded; and the measured way is never wrong about a tensor."""
    found, setup = outcome(seed).to_dict(), SetUp.of(seed)
    assert not found["wrong"]["measured"], setup
    assert (found["said"]["measured"] == "leak") == found["leaks"], setup
    assert found == BY_SEED[seed], f"{setup}\n{STALE}"


@pytest.mark.parametrize("seed", FAST)
def test_a_set_up(seed: int) -> None:
    check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", REST)
def test_one_of_the_other_set_ups(seed: int) -> None:
    check(seed)


def test_a_set_up_is_the_same_at_every_call() -> None:
    assert [SetUp.of(seed) for seed in SEEDS] == [SetUp.of(seed) for seed in SEEDS]
    assert len({SetUp.of(seed).code for seed in SEEDS}) > 290


def test_the_record_is_of_all_set_ups_and_many_leak() -> None:
    assert tuple(BY_SEED) == SEEDS
    assert 60 < sum(row["leaks"] for row in BY_SEED.values()) < 240
    assert sum(BY_SEED[seed]["leaks"] for seed in FAST) >= 10


def test_the_measured_way_finds_every_leak_and_invents_none() -> None:
    for row in BY_SEED.values():
        assert (row["said"]["measured"] == "leak") == row["leaks"], row["seed"]
        assert not row["wrong"]["measured"], row["seed"]


def test_the_predicted_way_is_never_wrong() -> None:
    assert {row["seed"]: row["wrong"]["predicted"] for row in BY_SEED.values()
            if row["wrong"]["predicted"]} == {}  # fmt: skip


def test_a_rule_that_is_often_wrong_is_in_preview() -> None:
    for code, (right, fired) in precision(read()).items():
        assert right >= ENOUGH * fired or BY_CODE[code].status == "preview", code


def test_the_page_is_what_the_record_says() -> None:
    assert PAGE.read_text() == page(read()), STALE
