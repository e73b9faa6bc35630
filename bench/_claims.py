"""A target, and the ratios that were measured for it."""

from __future__ import annotations

import statistics
from typing import NamedTuple


class Claim(NamedTuple):
    """Ratios in all rounds, and the most that their median may be.

    Attributes:
        what: the two sides.
        ratios: empty if it was not run.
        most: None if nothing is asked for.
    """

    what: str
    ratios: list[float]
    most: float | None

    @property
    def verdict(self) -> str:
        """``met``, ``missed``, ``not run``; empty if nothing is asked for."""
        if not self.ratios:
            return "not run"
        if self.most is None:
            return ""
        return "met" if statistics.median(self.ratios) <= self.most else "missed"

    def __str__(self) -> str:
        asked = "" if self.most is None else f"at most {self.most:g}"
        middle = f"{statistics.median(self.ratios):.3f}" if self.ratios else ""
        return f"{self.what:<68} {middle:>7}  {asked} {self.verdict}".rstrip()
