"""What the story is run with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from frostline.errors import FrostlineError

MOST_SEEDS = 5


@dataclass(frozen=True)
class Settings:
    """How much of the story is run.

    Attributes:
        seeds: how many times the networks are trained, each from another start; 1 to 5.
        epochs: how long the second branch is trained; at least 1.
        momentum: of the norms while the frozen part should stay; in [0, 1]. With 0 nothing moves,
            and the control of the demo fails.
    """

    seeds: int = MOST_SEEDS
    epochs: int = 3
    momentum: float = 0.1

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= MOST_SEEDS:
            raise FrostlineError(f"seeds: expected 1 to {MOST_SEEDS}, got {self.seeds}")
        if self.epochs < 1:
            raise FrostlineError(f"epochs: expected at least 1, got {self.epochs}")
        if not 0 <= self.momentum <= 1:
            raise FrostlineError(f"momentum: expected a number in [0, 1], got {self.momentum}")

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)
