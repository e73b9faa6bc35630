"""How an alarm and a report read: at 80 columns, worst first, equal findings told once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from frostline._collapsing import collapse
from frostline._results import WIDTH, Change, elide, plural
from frostline.errors import FrostlineWarning
from frostline.freezing import ignored
from frostline.freezing.printing import human

if TYPE_CHECKING:
    from frostline.guarding.report import Finding, GuardReport, Idle, Tier

_LEAST_NAME = 16
_ROWS = 12  # of each cause; the rest is collapsed and counted


def alarm(drift: Sequence[Change], report: GuardReport, pinpointed: bool) -> str:
    """The message of :class:`frostline.errors.FrozenStateChanged`."""
    lines = [f"{len(drift)} of {plural(report.frozen, 'frozen tensor')} changed", ""]
    for group in _by_cause(drift):
        lines += [*_rows(group), "", *_cause(group, pinpointed), ""]
    return "\n".join(lines).rstrip()


def _by_cause(changes: Iterable[Change]) -> list[list[Change]]:
    groups: dict[tuple[str, str | None, str | None], list[Change]] = {}
    for change in changes:
        groups.setdefault((change.cause, change.mend, change.culprit), []).append(change)
    return list(groups.values())


def _rows(changes: Sequence[Change]) -> list[str]:
    shown = changes if len(changes) <= _ROWS else changes[: _ROWS - 1]
    cells = [_cells(change) for change in shown]
    widths = [max(len(row[i]) for row in cells) for i in range(1, 4)]
    for column in (1, 0):  # numbers can be looked up; a name cut to nothing helps nobody
        if _room_beside(widths) < _LEAST_NAME:
            widths[column] = 0
    room = _room_beside(widths)
    names = [elide(row[0], room) for row in cells]
    first = max(map(len, names))
    lines = [
        "  " + "  ".join(
            [name.ljust(first), *(c.rjust(w) for c, w in zip(row[1:], widths, strict=True) if w)]
        )
        for name, row in zip(names, cells, strict=True)
    ]  # fmt: skip
    rest = changes[len(shown) :]
    if rest:
        patterns = collapse([change.name for change in rest])
        lines += [_more(pattern, count) for pattern, count in patterns[:4]]
        hidden = sum(count for _, count in patterns[4:])
        lines += [f"  and {hidden:,} more: see .changes"] if hidden else []
    return [line.rstrip() for line in lines]


def _room_beside(widths: Sequence[int]) -> int:
    return WIDTH - 2 - sum(width + 2 for width in widths if width)


def _more(pattern: str, count: int) -> str:
    tail = f"  {plural(count, 'more tensor')}"
    return f"  {elide(pattern, WIDTH - 2 - len(tail))}{tail}"


def _cells(change: Change) -> tuple[str, str, str, str]:
    if change.changed_elements is not None and change.elements is not None:
        much = f"{change.changed_elements:,} of {change.elements:,}"
    else:
        much = "" if change.kind == "value" else change.kind
    by = f"by up to {change.max_abs:.2g}" if change.max_abs is not None else ""
    return change.name, much, by, _when(change)


def _when(change: Change) -> str:
    if change.step is None:
        return "before the guard"
    if change.since is not None and change.since + 1 < change.step:
        return f"steps {change.since + 1}-{change.step}"
    return f"step {change.step}" if change.step else "before step 1"


def _cause(changes: Sequence[Change], pinpointed: bool) -> list[str]:
    change = changes[0]
    lines = _labelled("cause", change.cause)
    if change.mend is not None:
        lines += _labelled("mend", change.mend)
    if change.culprit is not None:
        lines += _labelled("line", change.culprit)
    elif not pinpointed:
        lines += _labelled("line", "run again with pinpoint=True")
    return lines


def _labelled(label: str, text: str) -> list[str]:
    # A path is there to be copied; a name of a tensor is in the rows and in .changes.
    words = text.split(" ") if label != "line" else [text]
    room = WIDTH - 9 if label != "line" else len(text)
    return fill(
        " ".join(elide(word, room) for word in words),
        WIDTH,
        initial_indent=f"  {label:<7}",
        subsequent_indent=" " * 9,
        break_long_words=False,
        break_on_hyphens=False,
    ).splitlines()


def warn(text: str) -> None:
    """Warn at the user's line."""
    ignored.warn(text, FrostlineWarning)


def report(found: GuardReport) -> str:
    """The report as ``print`` shows it."""
    lines = [f"GuardReport  {elide(found.target, 64)}", *_labelled("", verdict(found))]
    if found.changes:
        lines += ["", *_changes(found)]
    lines += _section("before the first step", map(_finding, found.preflight))
    lines += _section("never changed, though trainable", idle(found.idle))
    lines += ["", *map(_tier, found.tiers)]
    lines += _section("notes", [*found.windows, *found.notes])
    return "\n".join(lines)


def verdict(found: GuardReport) -> str:
    """One sentence: what can be said of the frozen tensors, and how it is known."""
    many = f"{plural(found.frozen, 'frozen tensor')}, {human(found.nbytes)}B"
    ran = f"over {plural(found.steps, 'step')}"
    if found.let_go:
        ran += f"; {found.let_go:,} let go on the way"
    if found.drift:
        names = {change.name for change in found.drift}
        return f"CHANGED: {len(names)} of {many}, {ran}"
    if found.nothing_ran:
        return (
            f"nothing ran: no optimizer of torch stepped under this guard ({many}). In a loop "
            "without one, call guard.step() after each step"
        )
    if cast := {change.name for change in found.changes if change.kind == "cast"}:
        return f"cast: {len(cast)} of {many}, {ran}; else nothing changed"
    if found.unchanged:
        return f"unchanged, every byte: {many}, {ran}"
    return f"no change seen: {many}, {ran}"


def _changes(found: GuardReport) -> list[str]:
    lines: list[str] = []
    for group in _by_cause(found.changes):
        lines += [*_rows(group), *_cause(group, pinpointed=True), ""]
    return lines[:-1]


def _section(title: str, entries: Iterable[str]) -> list[str]:
    lines = [
        line
        for entry in entries
        for line in fill(
            entry, WIDTH, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
        ).splitlines()
    ]
    return ["", f"  {title}", *lines] if lines else []


def _finding(finding: Finding) -> str:
    return f"{finding.name}: {finding.what}. {finding.mend}"


def idle(entries: Sequence[Idle]) -> list[str]:
    """Trainable tensors that never changed, equal reasons together."""
    reasons: dict[str, list[str]] = {}
    for entry in entries:
        reasons.setdefault(entry.reason, []).append(entry.name)
    return [
        f"{elide(pattern, 50)}  {reason}" + (f" ({plural(count, 'tensor')})" if count > 1 else "")
        for reason, names in reasons.items()
        for pattern, count in collapse(names)
    ]


def _tier(tier: Tier) -> str:
    if not tier.ran:
        head = f"  {tier.name:<11} did not run: {tier.why_not}"
        return fill(head, WIDTH, subsequent_indent=" " * 14)
    size = f", {human(tier.nbytes)}B" if tier.nbytes else ""
    each = f", {1e3 * tier.seconds / tier.looks:.2g} ms each" if tier.seconds and tier.looks else ""
    text = f"{tier.tensors:,} tensors{size}, {plural(tier.looks, 'look')}{each}; {tier.sees}"
    if tier.why_not:
        text += f". Not on all: {tier.why_not}"
    return fill(
        text, WIDTH, initial_indent=f"  {tier.name:<11} ", subsequent_indent=" " * 14,
        break_on_hyphens=False,
    )  # fmt: skip
