"""How a report reads at 80 columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING

from frostline._results import WIDTH, elide, filled, labelled, plural
from frostline.auditing.finding import SEVERITIES, Finding
from frostline.auditing.rules import PREVIEW
from frostline.auditing.telling.grouping import Group, grouped, mends, message
from frostline.auditing.telling.printable import code, name, short

if TYPE_CHECKING:
    from frostline.auditing.report import AuditReport

_LABEL = 13
_labelled = partial(labelled, width=_LABEL)
_PLACES = 6  # patterns of a group that are listed
_MENDS = 6  # pieces of code of a group that are shown
_REASONS = 3  # why tensors are undecided
_MESSAGE = 400  # a message is at most 120 characters, unless a name in it is long
_CODE = 300  # a line of code is not broken; a longer one is no code to be copied


def text(report: AuditReport) -> str:
    """All of it: a title, the findings by module, and what was asked and how it was answered."""
    known: dict[str, str] = {}
    blocks = ["\n".join(_block(group, known)) for group in grouped(report.findings)]
    return "\n\n".join([_title(report), *blocks, "\n".join(_end(report))])


def _title(report: AuditReport) -> str:
    return f"Audit  {name(report.model, 40)}: {_counts(report.findings)}"


def _counts(findings: Sequence[Finding]) -> str:
    """How many of each severity.

    Example:
        >>> _counts([Finding("FRZ101", "n", "error", "a", "m", "x")] * 2)
        '2 errors'
    """
    found = Counter(finding.severity for finding in findings)
    words = [
        plural(found[severity], severity) if severity != "info" else f"{found[severity]:,} info"
        for severity in SEVERITIES
        if found[severity]
    ]
    return ", ".join(words) or "nothing found"


# --- one group -----------------------------------------------------------------------------------


def _block(group: Group, known: dict[str, str]) -> Iterator[str]:
    """The places, what is found there, and code that mends it, once where it mends several."""
    where = group.where(WIDTH - 20, _PLACES)
    many = f"  ({len(group.places):,} places)" if len(group.places) > 1 else ""
    yield filled(where + many, rest=2)
    by_mend: dict[tuple[str, ...], list[tuple[Finding, ...]]] = {}
    for alike in group.findings:
        by_mend.setdefault(mends(alike), []).append(alike)
    for pieces, found in by_mend.items():
        for alike in found:
            yield from _found(alike)
        yield from _mend(_shown(pieces, known))
        known |= dict.fromkeys(pieces, name(group.places[0], 40)) | known


def _found(alike: tuple[Finding, ...]) -> Iterator[str]:
    first = alike[0]
    preview = " (preview)" if first.code in PREVIEW else ""
    yield f"  {first.severity:<{_LABEL - 2}}{first.code} {first.name}{preview}"
    yield filled(elide(message(alike), _MESSAGE), _LABEL, _LABEL)


def _shown(pieces: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """What stands under the findings that these pieces of code mend.

    Args:
        pieces: different ones.
        known: code that stands above already, each with the place that it stands at.
    """
    if len(pieces) == 1 and "\n" in pieces[0] and pieces[0] in known:
        return [f"# as for {known[pieces[0]]}"]
    left = len(pieces) - _MENDS
    more = [f"# and {left:,} more like these: see .findings"] if left > 0 else []
    return [*pieces[:_MENDS], *more]


def _mend(pieces: Sequence[str]) -> Iterator[str]:
    """Code as it is to be typed, so that only comments are broken."""
    lines = [part for piece in pieces for line in piece.split("\n") for part in _broken(line)]
    for label, line in zip_longest(["mend"], lines, fillvalue=""):
        yield f"  {label:<{_LABEL - 2}}{elide(line, _CODE)}"


def _broken(line: str) -> list[str]:
    shown = code(line)
    if not shown.startswith("# ") or len(shown) <= WIDTH - _LABEL:
        return [shown]
    return wrap(shown, WIDTH - _LABEL, subsequent_indent="# ", break_on_hyphens=False)


# --- the end -------------------------------------------------------------------------------------


def _end(report: AuditReport) -> Iterator[str]:
    yield filled(_outcome(report))
    claim = report.claim
    size = plural(claim["elements"], "element")
    yield _labelled(
        "claimed", f"{short(claim['text'], _MESSAGE)}: {plural(claim['tensors'], 'tensor')}, {size}"
    )
    yield _labelled("known by", _how(report))
    for why, names in _by_reason(report):
        yield _labelled("undecided", _listed(names) + f": {short(why, _MESSAGE)}")
    if report.ignored:
        yield _labelled("ignored", plural(report.ignored, "finding"))
    if report.unused_ignores:
        idle = ", ".join(short(ignore, 60) for ignore in report.unused_ignores)
        yield _labelled("ignored", f"nothing by {idle}: leave it out")
    for note in report.notes:
        yield _labelled("note", short(note, _MESSAGE))
    if report.findings:
        yield f"To know more: frostline rule {report.findings[0].code}"


def _outcome(report: AuditReport) -> str:
    """What a step changes of what is claimed."""
    all_, now, later = report.claim["tensors"], report.will_change, report.after_train
    if not all_:
        return "Nothing is claimed to be frozen, so that nothing can leak."
    if not (now or later):
        sure = "" if report.undecided == {} else ", as far as it is decided"
        return f"None of {plural(all_, 'frozen tensor')} changes in a training step{sure}."
    if set(now) == set(later):
        said = f"{len(now):,} of {plural(all_, 'frozen tensor')} will change in a training step"
    else:
        said = (
            f"{len(now):,} of {plural(all_, 'frozen tensor')} will change in a training step as "
            f"the modes are, {len(later):,} after model.train()"
        )
    return f"{said}{_drift(report)}."


def _drift(report: AuditReport) -> str:
    # A counter moves by one whatever the model sees: that says nothing.
    far = {
        key: value
        for key, value in report.drift.items()
        if math.isfinite(value) and not key.endswith("num_batches_tracked")
    }
    if not far:
        return ""
    most = max(far, key=lambda key: far[key])
    return f", by up to {far[most]:.3g} ({name(most, 40)})"


def _how(report: AuditReport) -> str:
    called = f" with {short(report.called, _MESSAGE)}" if report.called else ""
    return {
        "read": "reading modules and optimizer; nothing was run. batch= measures a step",
        "predicted": f"a step on tensors without memory{called}",
        "measured": f"a real step{called}; everything was put back",
    }[report.how]


def _by_reason(report: AuditReport) -> Iterator[tuple[str, list[str]]]:
    reasons: dict[str, list[str]] = {}
    for tensor, why in report.undecided.items():
        reasons.setdefault(why, []).append(tensor)
    yield from list(reasons.items())[:_REASONS]
    left = list(reasons.values())[_REASONS:]
    if left:
        yield "for other reasons, see .undecided", [one for names in left for one in names]


def _listed(names: Iterable[str]) -> str:
    return Group(tuple(names), ()).where(WIDTH - 20, 2)
