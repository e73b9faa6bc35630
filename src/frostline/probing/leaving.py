"""Code that sorts samples, or parts of them, by their content: its rows stand for other samples.

It shows by the number of its calls, or by the shapes in them (experts and their tokens, proposals
of a detector). The call around it puts the rows in their places again, and so its output tells
whether anything was mixed inside. Only if it was, its inside is looked at, as far as it is the same
in every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from frostline.probing.calls import Path, Site


@dataclass(frozen=True)
class Left:
    """Sites where nothing is put back or judged.

    Attributes:
        sites: these.
        closed: calls of which nothing inside is.
        opened: calls of which nothing inside is, from the call with this number on.
    """

    sites: frozenset[Site] = frozenset()
    closed: frozenset[Path] = frozenset()
    opened: Mapping[Path, int] = field(default_factory=dict)

    def __contains__(self, site: Site) -> bool:
        if site in self.sites:
            return True
        for depth, (number, _) in enumerate(site.path):
            around = site.path[:depth]
            if around in self.closed or number >= self.opened.get(around, number + 1):
                return True
        return False

    def with_more(
        self, sites: Iterable[Site], unsteady: Mapping[Path, int], mixing: Iterable[Path]
    ) -> Left:
        """What is to be left in the next round.

        Args:
            sites: some more.
            unsteady: calls that sort, and with which of their calls that begins.
            mixing: calls whose output mixes samples.
        """
        opened = dict(self.opened)
        for call, number in unsteady.items():
            # Around the first there is nothing that could put rows in their places.
            if len(call) < 2 or call in opened:
                opened[call] = min(number, opened.get(call, number))
        for call in self.closed & set(mixing):
            opened[call] = unsteady.get(call, 0)
        closed = self.closed | unsteady.keys()
        return Left(self.sites | set(sites), frozenset(closed - opened.keys()), opened)


def earliest(calls: Iterable[Path]) -> dict[Path, int]:
    """The callers of these calls, and the number of the first of them that each made."""
    found: dict[Path, int] = {}
    for *around, (number, _) in calls:
        caller = tuple(around)
        found[caller] = min(number, found.get(caller, number))
    return found
