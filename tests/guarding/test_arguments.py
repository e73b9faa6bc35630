"""Wrong switches of a guard: refused with what was expected; right ones pass."""

from __future__ import annotations

import itertools
from decimal import Decimal
from fractions import Fraction
from typing import get_args

import numpy as np
import pytest

from frostline.guarding.arguments import OnChange, Proof, check

GOOD = {"overhead": 0.01, "on_change": "raise", "pinpoint": False, "proof": "auto"}


@pytest.mark.parametrize("overhead", [0, 1, 0.0, 1.0, 1e-9, Fraction(1, 100), np.float32(0.5)])
def test_fractions(overhead) -> None:
    check(**GOOD | {"overhead": overhead})


def test_every_right_combination() -> None:
    for on_change, pinpoint, proof in itertools.product(
        get_args(OnChange), (True, False, "auto"), get_args(Proof)
    ):
        if pinpoint != "auto" or on_change != "raise":
            check(0.01, on_change, pinpoint, proof)


@pytest.mark.parametrize(
    ("switch", "error", "message"),
    [
        ({"overhead": -1e-9}, ValueError, "overhead=-1e-09.*from 0 to 1; 1 % is 0.01"),
        ({"overhead": 1.0000001}, ValueError, "from 0 to 1"),
        ({"overhead": 5}, ValueError, "overhead=5: .*1 % is 0.01"),
        ({"overhead": float("nan")}, ValueError, "overhead=nan"),
        ({"overhead": float("inf")}, ValueError, "overhead=inf"),
        ({"overhead": True}, TypeError, "overhead=True: expected a fraction"),
        ({"overhead": "1%"}, TypeError, "overhead='1%': expected a fraction"),
        ({"overhead": None}, TypeError, "overhead=None"),
        ({"overhead": Decimal("0.1")}, TypeError, "overhead=Decimal"),
        ({"on_change": "error"}, ValueError, "on_change='error': .*'raise', 'warn', 'restore'"),
        ({"on_change": "collect"}, ValueError, "on_change='collect'"),
        ({"on_change": None}, ValueError, "on_change=None"),
        ({"on_change": ["raise"]}, ValueError, "on_change="),
        ({"pinpoint": "yes"}, ValueError, "pinpoint='yes': expected True, False or 'auto'"),
        ({"pinpoint": 1}, ValueError, "pinpoint=1"),
        ({"pinpoint": None}, ValueError, "pinpoint=None"),
        ({"proof": "page"}, ValueError, "proof='page': expected 'auto', 'pages' or 'content'"),
        ({"proof": None}, ValueError, "proof=None"),
        ({"pinpoint": "auto"}, ValueError, "on_change='raise' ends there.*pinpoint=True"),
    ],
)
def test_wrong_switches(switch, error, message) -> None:
    with pytest.raises(error, match=message):
        check(**GOOD | switch)


def test_the_switches_are_those_that_are_answered() -> None:
    from frostline.guarding.answers import _ANSWERS

    assert set(get_args(OnChange)) == set(_ANSWERS) - {"collect"}
