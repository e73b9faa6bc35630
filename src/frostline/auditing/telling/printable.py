"""Names of others on a terminal: what would steer it is written as an escape."""

from __future__ import annotations

import re

from frostline._results import elide

_COMMANDS = re.compile(r":(?=:)|#(?=#\[)")


def printable(text: str) -> str:
    r"""``text`` in one line, with control, bidirectional and other invisible characters escaped.

    The two marks that a runner of GitHub Actions takes for commands in a log are broken up too.

    Example:
        >>> print(printable("a\x1b[31mb\n\u202ec"), printable("::error::d"))
        a\x1b[31mb\n\u202ec \x3a:error\x3a:d
    """
    return _COMMANDS.sub(lambda mark: f"\\x{ord(mark[0]):02x}", code(text))


def code(line: str) -> str:
    r"""The same for a line of code, in which two colons may be a slice.

    Example:
        >>> print(code("x[::2]  # \x07"))
        x[::2]  # \x07
    """
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else _escaped(c) for c in line)


def short(text: str, width: int) -> str:
    """``text``, printable, in at most ``width`` columns; elided in the middle.

    Example:
        >>> short("x" * 100, 7)
        'xx…xxxx'
    """
    # Megabytes are cut before they are looked at letter by letter.
    return elide(printable(elide(text, 4 * width)), width)


def name(full: str, width: int) -> str:
    """The same for the name of a module or tensor, which is empty for the model itself.

    Example:
        >>> name("", 20), name("encoder.layers.23.self_attn.q_proj.weight", 24)
        ('(the model)', 'encoder…tn.q_proj.weight')
    """
    return short(full, width) or "(the model)"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
