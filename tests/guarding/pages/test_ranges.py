"""Ranges of addresses: whole pages inside, and sets of them."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from frostline.guarding.pages.ranges import common, joined, without
from frostline.guarding.pages.record import PAGE, interior


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0, 0), (0, 0)),
        ((0, PAGE), (0, PAGE)),
        ((1, PAGE), (PAGE, PAGE)),
        ((1, 2 * PAGE - 1), (PAGE, PAGE)),
        ((1, 2 * PAGE), (PAGE, 2 * PAGE)),
        ((PAGE - 1, 2 * PAGE + 1), (PAGE, 2 * PAGE)),
        ((5, 9), (PAGE, PAGE)),
    ],
)
def test_interior(given, expected):
    assert interior(*given) == expected


def as_set(ranges):
    return {page for start, end in ranges for page in range(start, end)}


def random_ranges(rng: random.Random) -> list[tuple[int, int]]:
    return [(s := rng.randrange(40), s + rng.randrange(9)) for _ in range(rng.randrange(7))]


@pytest.mark.parametrize("seed", range(200))
def test_ranges_are_sets(seed):
    rng = random.Random(seed)
    given = random_ranges(rng), random_ranges(rng)
    a, b = map(joined, given)
    assert [as_set(x) for x in given] == [as_set(a), as_set(b)]
    assert as_set(common(a, b)) == as_set(a) & as_set(b)
    assert as_set(without(a, b)) == as_set(a) - as_set(b)
    for result in (a, without(a, b)):
        assert all(x[1] < y[0] for x, y in pairwise(result))
    assert as_set(joined(given[0], 3)) >= as_set(a)


def test_a_gap_is_bridged_up_to_its_size():
    assert joined([(0, 2), (5, 6)], 3) == [(0, 6)]
    assert joined([(0, 2), (5, 6)], 2) == [(0, 2), (5, 6)]
