"""Wrong switches of a guard, answered with what was expected."""

from __future__ import annotations

from numbers import Real
from typing import Any, Literal, get_args

Proof = Literal["auto", "pages", "content"]
OnChange = Literal["raise", "warn", "restore", "rewind"]
Pinpoint = bool | Literal["auto"]


def check(overhead: Any, on_change: Any, pinpoint: Any, proof: Any) -> None:
    """Refuse what is no fraction and no switch.

    Raises:
        TypeError: for a wrong type.
        ValueError: for an unknown switch, or a fraction outside of 0 to 1.
    """
    if isinstance(overhead, bool) or not isinstance(overhead, Real):
        raise TypeError(f"overhead={overhead!r}: expected a fraction of a step's time, as 0.01")
    if not 0 <= float(overhead) <= 1:
        raise ValueError(
            f"overhead={overhead!r}: expected a fraction of a step's time from 0 to 1; 1 % is 0.01"
        )
    if on_change not in get_args(OnChange):
        raise ValueError(
            f"on_change={on_change!r}: expected 'raise', 'warn', 'restore' or 'rewind'"
        )
    if not isinstance(pinpoint, bool) and pinpoint != "auto":
        raise ValueError(f"pinpoint={pinpoint!r}: expected True, False or 'auto'")
    if proof not in get_args(Proof):
        raise ValueError(f"proof={proof!r}: expected 'auto', 'pages' or 'content'")
    if pinpoint == "auto" and on_change == "raise":
        raise ValueError(
            "pinpoint='auto' looks at the steps after an alarm, and on_change='raise' ends there. "
            "Use pinpoint=True, or on_change='warn' or 'restore'"
        )
