"""The result of ``explain``: rows, what was seen in a run, and what accumulation does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from frostline._calling import how_called
from frostline._names import join, named_modules
from frostline._results import Result
from frostline.behaviours.leaking import looks_frozen
from frostline.explaining.accumulating import Accumulated, by_formula, by_run
from frostline.explaining.grouping import Row, rows
from frostline.explaining.observing import Observed, observe
from frostline.selection import Selector
from frostline.selection import select as choose


@dataclass(frozen=True, eq=False)
class Explanation(Result):
    """Why the output of a model may change: what each module does, equal ones together.

    Attributes:
        model: name of the model's class.
        modules: how many modules were looked at.
        rows: one for all modules that do the same; those that leak first.
        looks_frozen: whether anything does: no flag is off otherwise.
        microbatches: how many there are to a step, or None.
        accumulated: what accumulation does to each norm that writes its statistics now.
        called: how the batch was called, None without one.
        observed: what each module did in one run, by its full name; None without a batch.
    """

    model: str
    modules: int
    rows: tuple[Row, ...]
    looks_frozen: bool
    microbatches: int | None = None
    accumulated: tuple[Accumulated, ...] = ()
    called: str | None = None
    observed: dict[str, Observed] | None = None

    @property
    def leaky(self) -> list[str]:
        """Full names of the tensors that look frozen and that the next forward writes."""
        return [
            join(name, write.tensor)
            for row in self.rows
            if row.leaks
            for name in row.names
            for write in row.behaviour.now.writes
        ]

    def surprises(self, row: Row) -> dict[str, tuple[str, ...]]:
        """Modules of a row that wrote in the run what is not said of them, and what that was."""
        said = {write.tensor for write in row.behaviour.now.writes}
        seen = self.observed or {}
        return {
            name: more
            for name in row.names
            if (more := tuple(t for t in seen.get(name, Observed()).wrote if t not in said))
        }

    def __str__(self) -> str:
        from frostline.explaining.telling import text

        return text(self)

    def _repr_html_(self) -> str:
        from frostline.explaining.telling import as_html

        return as_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only; docs/formats/explanation-v1.schema.json describes it."""
        return {
            "version": 1,
            "model": self.model,
            "modules": self.modules,
            "looks_frozen": self.looks_frozen,
            "leaky": self.leaky,
            "rows": [row.to_dict() for row in self.rows],
            "microbatches": self.microbatches,
            "accumulated": [entry.to_dict() for entry in self.accumulated],
            "called": self.called,
            "observed": None
            if self.observed is None
            else {
                name: {"calls": seen.calls, "wrote": list(seen.wrote)}
                for name, seen in self.observed.items()
            },
        }


def make(model: nn.Module, select: Selector, microbatches: int | None, batch: Any) -> Explanation:
    """Look at the modules, and run the model if there is a batch."""
    modules = choose(model, select).modules if select is not None else named_modules(model)
    frozen = looks_frozen(model)
    accumulated: list[Accumulated] = []
    if microbatches is not None:
        accumulated = (
            by_formula(modules, microbatches)
            if batch is None
            else by_run(model, modules, microbatches, batch)
        )
    return Explanation(
        model=type(model).__name__,
        modules=len(modules),
        rows=tuple(rows(modules, frozen)),
        looks_frozen=bool(frozen),
        microbatches=microbatches,
        accumulated=tuple(accumulated),
        called=None if batch is None else how_called(batch),
        observed=None if batch is None else observe(model, batch),
    )
