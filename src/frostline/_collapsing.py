"""Many names in few lines: numbered siblings are told once, with their numbers and their count."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

# Longer ones are no numbers of siblings, and Python refuses to read those of thousands of digits.
_NUMBER = re.compile(r"(?<!\d)\d{1,9}(?!\d)")
_RUNS = 4  # separate runs of numbers that are listed; more become a star


def collapse(names: Iterable[str]) -> list[tuple[str, int]]:
    """Patterns that stand for ``names``, each with how many of them it stands for.

    ``{1-4}`` and ``{0,2}`` list numbers that are there, ``*`` stands for any. A pattern with a star
    may fit other names too, and then the count says how many are meant.

    Example:
        >>> collapse(["a.bn1.weight", "a.bn2.weight", "a.bn10.weight", "head.bias"])
        [('a.bn{1-2,10}.weight', 3), ('head.bias', 1)]
    """
    return [(pattern, len(members)) for pattern, members in groups(names)]


def groups(names: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Like :func:`collapse`, with the names themselves; in the order of the first of each.

    Example:
        >>> groups(["a.0", "b", "a.1"])
        [('a.{0-1}', ['a.0', 'a.1']), ('b', ['b'])]
    """
    alike: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        alike.setdefault(_NUMBER.sub("0", name), []).append(name)
    return [(_pattern(members), members) for members in alike.values()]


def _pattern(members: Sequence[str]) -> str:
    words = _NUMBER.split(members[0])
    columns = list(zip(*map(_NUMBER.findall, members), strict=True))
    combinations = 1
    for column in columns:
        combinations *= len(set(column))
    complete = combinations == len(members)
    text = words[0]
    for column, before, after in zip(columns, words, words[1:], strict=False):
        star = not complete and _is_whole_part(before, after)
        text += _numbers(column, star=star) + after
    return text


def _is_whole_part(before: str, after: str) -> bool:
    """Whether the number between these is a name of its own, as in a ``Sequential``."""
    return (not before or before.endswith(".")) and (not after or after.startswith("."))


def _numbers(column: Iterable[str], *, star: bool) -> str:
    different = sorted(set(column), key=lambda number: (int(number), number))
    if len(different) == 1:
        return different[0]
    runs = _runs(different)
    return "*" if star or len(runs) > _RUNS else "{" + ",".join(runs) + "}"


def _runs(numbers: Sequence[str]) -> list[str]:
    """``1 2 3 7`` as ``1-3`` and ``7``; numbers with leading zeros stand alone."""
    found: list[list[str]] = []
    for number in numbers:
        plain = number == str(int(number))
        if found and plain and found[-1][-1] == str(int(number) - 1):
            found[-1].append(number)
        else:
            found.append([number])
    return [run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found]
