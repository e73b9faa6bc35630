"""What a module does when it runs forward: plain facts, in words and in symbols."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

Kind = Literal["norm", "random", "writer", "unknown"]
Statistics = Literal["batch", "running", "instance", "group", "sample", "neighbours"]
Unit = Literal["channel", "channel of a sample", "group in the batch"]
Mechanism = Literal["statistics", "power iteration", "max_norm", "observer", "own code"]


@dataclass(frozen=True)
class Write:
    """A tensor of the module that its forward writes.

    Attributes:
        tensor: its name within the module.
        formula: the new value, in terms of the old ones and of the input; words in brackets where
            there is no formula.
        even_if_it_raises: whether it is written before the input is checked.
        only_rounding: whether the new value is the old one but for rounding, so that with some
            inputs not a bit moves.
        by: what writes it; each of the mechanisms that are known has a class below.
    """

    by: ClassVar[Mechanism] = "own code"

    tensor: str
    formula: str
    even_if_it_raises: bool = False
    only_rounding: bool = False

    def __str__(self) -> str:
        return f"{self.tensor} <- {self.formula}"


class Averaged(Write):
    """Running statistics of a norm, and their counter."""

    by = "statistics"


class Iterated(Write):
    """A vector of a spectral norm."""

    by = "power iteration"


class Shortened(Write):
    """Rows of an embedding with ``max_norm``."""

    by = "max_norm"


class Observed(Write):
    """What an observer of quantisation notes, and what follows from it."""

    by = "observer"


@dataclass(frozen=True)
class Doing:
    """What a forward of a module does in one mode.

    Attributes:
        words: what comes out, in a few words.
        symbols: the same as a formula, where there is one.
        statistics: what a norm normalises with; None for other modules.
        writes: what it writes to itself.
        random: whether it draws random numbers.
        needs_two: torch raises unless there are two values for each of these.
    """

    words: str
    symbols: str = ""
    statistics: Statistics | None = None
    writes: tuple[Write, ...] = ()
    random: bool = False
    needs_two: Unit | None = None

    @property
    def raises(self) -> str:
        """When torch refuses the input, in words; empty if never."""
        if self.needs_two is None:
            return ""
        counted = [write.tensor for write in self.writes if write.even_if_it_raises]
        after = f", after writing {' and '.join(counted)}" if counted else ""
        return f"raises ValueError with one value per {self.needs_two}{after}"


@dataclass(frozen=True)
class Behaviour:
    """What a module does in each mode, as it is configured and held now.

    Attributes:
        kind: a norm, a module that draws random numbers, one that writes to itself, or one whose
            code asks for the mode or writes tensors without our knowing what for.
        training: the mode it is in.
        in_training: what it would do in training mode; under a hold in eval that is what it does
            in eval.
        in_eval: what it would do in eval mode.
        held: whether a frozen part keeps it from changing its mode or its statistics.
        sure: whether the class is known; otherwise its code was read.
    """

    kind: Kind
    training: bool
    in_training: Doing
    in_eval: Doing
    held: bool = False
    sure: bool = True

    @property
    def now(self) -> Doing:
        """What it does in the mode it is in."""
        return self.in_training if self.training else self.in_eval

    @property
    def same_in_both(self) -> bool:
        """Whether the mode makes no difference."""
        return self.in_training == self.in_eval
