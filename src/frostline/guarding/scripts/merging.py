"""One report for a model that was followed in pieces: on its own first, then within another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from frostline._names import join
from frostline.guarding.report import GuardReport


@dataclass(eq=False)
class Followed:
    """What is known of one model.

    Attributes:
        model: its class.
        last: the report of its guard, once that has finished.
        earlier: reports of pieces that were followed before the whole was, with their place in it.
    """

    model: str
    last: GuardReport | None = None
    earlier: list[tuple[str, GuardReport]] = field(default_factory=list)

    def below(self, prefix: str) -> Iterator[tuple[str, GuardReport]]:
        """All of its reports, as seen from a model in which it hangs at ``prefix``."""
        for place, report in self.earlier:
            yield join(prefix, place), report
        if self.last is not None:
            yield prefix, self.last

    @property
    def report(self) -> GuardReport | None:
        """All reports as one, with the names of the whole; None if none has finished."""
        if self.last is None:
            return None
        for prefix, report in self.earlier:
            _add(self.last, prefix, report)
        self.earlier = []
        return self.last


def _add(whole: GuardReport, prefix: str, piece: GuardReport) -> None:
    renamed = [replace(change, name=join(prefix, change.name)) for change in piece.changes]
    told = {change.name for change in renamed}
    whole.changes = renamed + [change for change in whole.changes if change.name not in told]
    whole.steps += piece.steps
    whole.nothing_ran = whole.nothing_ran and piece.nothing_ran
    whole.unchanged = whole.unchanged and not whole.drift
    whole.notes = [*piece.notes, *whole.notes]
