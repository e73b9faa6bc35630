"""Which findings are shown, and which of them fail a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from frostline.auditing.finding import Finding
from frostline.auditing.policy.codes import chosen, words
from frostline.errors import SelectionError
from frostline.selection import select_names

FailOn = Literal["error", "warning", "info", "never"]
FAIL_ON: tuple[FailOn, ...] = get_args(FailOn)


@dataclass(frozen=True)
class Policy:
    """What to show, and what fails.

    A rule is named by its code, by the beginning of its code (``"FRZ1"`` is the family of buffers
    and modes), or by its name (``"batchnorm-stats-update"``).

    Attributes:
        select: the rules whose findings are shown; empty for all.
        ignore: the rules whose findings are not shown.
        per_name_ignores: rules that are ignored in a part of the model, by a name or pattern of
            it, as ``{"backbone.bn*": ["FRZ101"]}``; a pattern brings all below what it matches.
        fail_on: the mildest severity that fails a run, or ``"never"``.

    Raises:
        SelectionError: a code or name that no rule has; the message has the nearest.

    Example:
        >>> Policy(ignore=["FRZ1", "batchnorm-stats-update"]).fail_on
        'warning'
    """

    select: str | Sequence[str] = ()
    ignore: str | Sequence[str] = ()
    per_name_ignores: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    fail_on: FailOn = "warning"

    def __post_init__(self) -> None:
        for given in (self.select, self.ignore, *self.per_name_ignores.values()):
            _all(given)


def apply(findings: Iterable[Finding], policy: Policy) -> tuple[list[Finding], int, list[str]]:
    """What is left to show of ``findings``, how many are hidden by an ignore, and idle ignores.

    Args:
        findings: in any order, which stays.
        policy: what to show. What ``select`` leaves out does not count as ignored.

    Returns:
        The findings that stay, the number of those that an ignore hides, and each ignore that
        hides none, in words.

    Example:
        >>> seen = Finding("FRZ101", "batchnorm-stats-update", "error", "a.bn", "...", "...")
        >>> apply([seen], Policy(per_name_ignores={"a": ["FRZ1"], "b": ["FRZ1"]}))
        ([], 1, ['FRZ1 at "b"'])
    """
    wanted = _all(policy.select)
    asked = [one for one in findings if not policy.select or one.code in wanted]
    hidden: set[int] = set()
    unused: list[str] = []
    for text, hides in _ignores(policy, asked):
        hit = {index for index, one in enumerate(asked) if hides(one)}
        hidden |= hit
        if not hit:
            unused.append(text)
    kept = [one for index, one in enumerate(asked) if index not in hidden]
    return kept, len(hidden), unused


def _all(given: str | Iterable[str]) -> frozenset[str]:
    return frozenset().union(*map(chosen, words(given)))


Hides = Callable[[Finding], bool]


def _ignores(policy: Policy, findings: Sequence[Finding]) -> Iterator[tuple[str, Hides]]:
    """Each ignore in words, and whether it hides a finding."""
    for word in words(policy.ignore):
        yield word, _hides(chosen(word))
    places = dict.fromkeys(one.where for one in findings)
    for pattern, given in policy.per_name_ignores.items():
        inside = _inside(places, pattern)
        for word in words(given):
            yield f'{word} at "{pattern}"', _hides(chosen(word), inside)


def _hides(codes: frozenset[str], places: set[str] | None = None) -> Hides:
    return lambda one: one.code in codes and (places is None or one.where in places)


def _inside(places: Iterable[str], pattern: str) -> set[str]:
    try:
        return set(select_names(places, pattern))
    except SelectionError:
        return set()
