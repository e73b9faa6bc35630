"""Names, sizes and counts as a page shows them; names are text of others and may be hostile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frostline._collapsing import collapse
from frostline._results import elide

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
_LONGEST = 200


def shown(text: str, longest: int = _LONGEST) -> str:
    r"""``text`` without a character that could act: those become escapes, and length is bounded.

    Control characters, line breaks and the marks that turn the direction of writing (U+202E and its
    kin) are written as Python writes them. What is too long loses its middle.

    Example:
        >>> print(shown("layer\x1b[31m.\u202egnp"))
        layer\x1b[31m.\u202egnp
        >>> len(shown("x" * 10_000))
        200
    """
    # What is cut away need not be looked at: one character gives one or more.
    if len(text) > 2 * longest:
        text = text[:longest] + text[-longest:]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return elide(text, longest)


@dataclass(frozen=True)
class Names:
    """Many names in few lines.

    Attributes:
        patterns: the first patterns, as they can be shown, each with how many names it stands for.
        count: how many names there are.
        left: how many of them are in none of ``patterns``.
    """

    patterns: list[tuple[str, int]]
    count: int
    left: int


def listed(names: Sequence[str], most: int = 40) -> Names:
    """Numbered siblings together, at most so many patterns.

    Example:
        >>> listed(["a.0", "b", "a.1", "c"], most=2)
        Names(patterns=[('a.{0-1}', 2), ('b', 1)], count=4, left=1)
    """
    patterns = collapse(map(shown, names))[:most]
    return Names(patterns, len(names), max(0, len(names) - sum(count for _, count in patterns)))


def size(count: float) -> str:
    """Bytes in words.

    Example:
        >>> size(0), size(1536), size(94_000_000)
        ('0 B', '1.5 KiB', '89.6 MiB')
    """
    unit = 0
    while count >= 1023.5 and unit < len(_UNITS) - 1:
        count, unit = count / 1024, unit + 1
    return f"{count:.0f} B" if unit == 0 else f"{_digits(count)} {_UNITS[unit]}"


def short(count: float) -> str:
    """A count in at most three digits and a letter, ``B`` for the thousand millions of English.

    Example:
        >>> short(999), short(25_557_032), short(70_000_000_000)
        ('999', '25.6 M', '70 B')
    """
    for unit in ("", " K", " M", " B", " T"):
        if count < 999.5 or unit == " T":
            break
        count /= 1000
    return f"{_digits(count)}{unit}"


def share(percent: float) -> str:
    """A percentage that says "under" rather than 0.

    Example:
        >>> share(99.6), share(0.0871), share(0), share(1e-9)
        ('99.6 %', '0.09 %', '0 %', 'under 0.01 %')
    """
    if 0 < percent < 0.01:
        return "under 0.01 %"
    return f"{percent:.3g} %" if percent >= 1 else f"{round(percent, 2):g} %"


def _digits(count: float) -> str:
    return f"{count:,.0f}" if count >= 99.95 else f"{count:.3g}"
