"""How a target is written, and what to write instead."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import click

FORMS = "file.py:name or package.module:name"
CHECKPOINTS = frozenset({".pt", ".pth", ".ckpt", ".safetensors", ".bin"})
_FILES = CHECKPOINTS | {".py", ".pyi", ".ipynb"}


def split(target: str) -> tuple[str, str | None]:
    r"""The file or module of a target, and the name in it, None where none is given.

    What exists as it stands is a path, colons and all; else the last colon splits, unless what
    stands behind it is the rest of a path.

    Example:
        >>> split("train.py:build")
        ('train.py', 'build')
        >>> split("package.module")
        ('package.module', None)
        >>> split(r"C:\work\train.py")
        ('C:\\work\\train.py', None)
    """
    where, colon, name = target.rpartition(":")
    if os.path.exists(target) or not colon or "/" in name or "\\" in name:
        return target, None
    return where, name or None


def is_module(where: str) -> bool:
    """Whether this is to be imported by its name: no file, and not written like one.

    Example:
        >>> is_module("package.module"), is_module("./module"), is_module("no_such_file.py")
        (True, False, False)
    """
    if os.path.isfile(where) or Path(where).suffix in _FILES:
        return False
    return all(part.isidentifier() for part in where.split("."))


def typed(target: str) -> str:
    """The line to type next, for the command that runs."""
    context = click.get_current_context(silent=True)
    command = context.command_path if context else "frostline summary"
    return f"  {command} {shlex.quote(target)}"


def nearest(word: str, names: Iterable[str]) -> str:
    """Those of ``names`` that may have been meant, as the end of a message; empty if none may.

    Example:
        >>> nearest("biuld", ["build", "train"])
        ". The nearest is 'build'"
    """
    close = get_close_matches(word, list(names), n=3, cutoff=0.6)
    shown = ", ".join(repr(name) for name in close)
    if not close:
        return ""
    return f". The nearest {'is' if len(close) == 1 else 'are'} {shown}"
