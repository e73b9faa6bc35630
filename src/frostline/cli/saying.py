"""How text reaches a terminal: the first line bold, and nothing that the terminal cannot show."""

from __future__ import annotations

import os
import sys
from typing import TextIO

import click


def say(text: str, stream: TextIO | None = None) -> None:
    """Print, on stdout if no stream is given; without colour where ``NO_COLOR`` is set."""
    stream = sys.stdout if stream is None else stream
    # Python's own way of writing what a terminal cannot show.
    encoding = stream.encoding or "utf-8"
    known = text.encode(encoding, "replace").decode(encoding)
    title, newline, rest = known.partition("\n")
    colour = stream.isatty() and not os.environ.get("NO_COLOR")
    click.echo((click.style(title, bold=True) if colour else title) + newline + rest, file=stream)
