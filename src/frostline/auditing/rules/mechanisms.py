"""What frozen modules write to themselves now, by the mechanism that writes it."""

from __future__ import annotations

from collections.abc import Iterator

from frostline._names import join
from frostline.auditing.finding import Severity
from frostline.auditing.subject import Facts, Subject
from frostline.behaviours.doing import Mechanism


def written_by(
    subject: Subject, mechanism: Mechanism
) -> Iterator[tuple[Facts, tuple[str, ...], Severity]]:
    """Each frozen module with the full names of what it writes, and how sure it is.

    An error where a step changes a byte of it, a warning where that is undecided.
    """
    for facts in subject.frozen_modules():
        doing = facts.doing(facts.training)
        writes = doing.writes if doing is not None else ()
        names = {join(facts.name, write.tensor) for write in writes if write.by == mechanism}
        if not names:
            continue
        for maybe in (False, True):
            written = subject.written(facts, subject.now, maybe=maybe)
            mine = tuple(name for name in written if name in names)
            if mine:
                yield facts, mine, "warning" if maybe else "error"
                break
