"""A self-contained HTML page from a template of this package."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from frostline.errors import FrostlineError

GENERATOR = "frostline"
_MARK = f'<meta name="generator" content="{GENERATOR}">'


def render(template: str, context: Mapping[str, Any]) -> str:
    """The page; everything in ``context`` is escaped unless it is a :func:`trusted` string.

    Raises:
        jinja2.UndefinedError: the template names something that ``context`` lacks.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("frostline.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(mark=trusted(_MARK), **context)


def trusted(markup: str) -> str:
    """``markup`` that we made ourselves and that is not to be escaped."""
    import markupsafe

    return markupsafe.Markup(markup)


def prepare(folder: Path, name: str) -> Path:
    """Make ``folder`` if need be, and the path of the page in it, before any work is done.

    Raises:
        FrostlineError: the folder cannot be made or written to, or a file of that name is there
            which is not a page of ours.
    """
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        ours = not path.exists() or _MARK in path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FrostlineError(
            f"cannot write to {folder}: {error.strerror or error}\n"
            "Hand in another folder with --out DIR"
        ) from error
    if not ours:
        raise FrostlineError(
            f"{path} is there and was not written by {GENERATOR}; it is left alone\n"
            "Hand in another folder with --out DIR"
        )
    return path


def write(path: Path, page: str) -> None:
    """Put ``page`` in the place of what is there, at once: no reader sees half of it.

    Raises:
        FrostlineError: the file cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_text(page, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FrostlineError(f"cannot write {path}: {error.strerror or error}") from error
