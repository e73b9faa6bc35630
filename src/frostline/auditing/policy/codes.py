"""Naming rules: by a code, by the beginning of one, or by a name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

from frostline.auditing.rule import Rule
from frostline.auditing.rules import BY_CODE
from frostline.errors import SelectionError

_PREFIX = re.compile(r"FRZ\d{0,3}", re.IGNORECASE)


def looks_like_code(word: str) -> bool:
    """Whether this is meant as the code of a rule, or the beginning of one.

    Example:
        >>> looks_like_code("FRZ101"), looks_like_code("frz1"), looks_like_code("train.py:build")
        (True, True, False)
    """
    return _PREFIX.fullmatch(word) is not None


def words(given: str | Iterable[str]) -> tuple[str, ...]:
    """One word or several, as several.

    Example:
        >>> words("FRZ1"), words(["FRZ1", "FRZ2"])
        (('FRZ1',), ('FRZ1', 'FRZ2'))
    """
    return (given,) if isinstance(given, str) else tuple(given)


def chosen(word: str) -> frozenset[str]:
    """The codes of the rules that a code, the beginning of one, or a name stands for.

    Raises:
        SelectionError: for none; the message has the nearest.

    Example:
        >>> chosen("batchnorm-stats-update")
        frozenset({'FRZ101'})
    """
    rules = BY_CODE.values()
    if looks_like_code(word):
        found = frozenset(rule.code for rule in rules if rule.code.startswith(word.upper()))
    else:
        found = frozenset(rule.code for rule in rules if rule.name == word.lower())
    if not found:
        raise SelectionError(
            f"no rule is called {word!r}{_nearest(word)}. To see all, type\n\n  frostline rule"
        )
    return found


def rule_of(word: str) -> Rule:
    """The one rule that a code or a name stands for.

    Raises:
        SelectionError: there is none, or there are several.

    Example:
        >>> rule_of("frz101").name
        'batchnorm-stats-update'
    """
    codes = sorted(chosen(word))
    if len(codes) > 1:
        raise SelectionError(
            f"{word} stands for {len(codes)} rules: {', '.join(codes)}. Type, for instance\n\n"
            f"  frostline rule {codes[0]}"
        )
    return BY_CODE[codes[0]]


def _nearest(word: str) -> str:
    names = [rule.name for rule in BY_CODE.values()]
    codes = [*BY_CODE, *{code[:4] for code in BY_CODE}]
    close = get_close_matches(word.upper(), codes, n=3) + get_close_matches(word.lower(), names)
    # A part of a name, as "batchnorm", is far from it by the count of letters.
    close += [name for name in names if len(word) > 3 and word.lower() in name]
    shown = ", ".join(map(repr, dict.fromkeys(close[:3])))
    return f". The nearest {'are' if ',' in shown else 'is'} {shown}" if shown else ""
