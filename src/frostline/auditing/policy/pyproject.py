"""The policy of a project: ``[tool.frostline]`` in its ``pyproject.toml``."""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from frostline.auditing.policy.policy import FAIL_ON, Policy
from frostline.errors import FrostlineError

TABLE = "[tool.frostline]"


def configured(start: Path) -> Policy:
    """The policy of the nearest ``pyproject.toml`` that has one, in ``start`` or above it.

    Args:
        start: an absolute path of a directory.

    Returns:
        The policy of the file; the default one without such a file.

    Raises:
        FrostlineError: the file cannot be read, or its table has an unknown key, a value of a
            wrong type or an unknown rule; the message names the file and the key.
    """
    for folder in (start, *start.parents):
        path = folder / "pyproject.toml"
        table = _table(path) if path.is_file() else None
        if table is not None:
            return _policy(table, path)
    return Policy()


def _table(path: Path) -> Any:
    """What stands under ``[tool.frostline]``, None without it."""
    try:
        tool = tomllib.loads(path.read_text(encoding="utf-8")).get("tool")
    except (OSError, ValueError) as error:  # no UTF-8 and no TOML are a ValueError
        raise FrostlineError(f"cannot read {path}: {error}") from error
    return tool.get("frostline") if isinstance(tool, dict) else None


def _policy(table: Any, path: Path) -> Policy:
    if not isinstance(table, dict):
        raise FrostlineError(f"{path}: {TABLE} must be a table, got {_got(table)}")
    for key, value in table.items():
        _check(key, value, path)
    try:
        return Policy(**{key.replace("-", "_"): value for key, value in table.items()})
    except FrostlineError as error:
        raise FrostlineError(f"{path}, {TABLE}: {error}") from error


def _check(key: str, value: Any, path: Path) -> None:
    if key not in _KEYS:
        close = get_close_matches(key.replace("_", "-"), _KEYS, n=1)
        instead = f". The nearest is {close[0]!r}" if close else ""
        raise FrostlineError(
            f"{path}: {TABLE} has the key {key!r}{instead}. The keys are {', '.join(_KEYS)}"
        )
    fits, expected, example = _KEYS[key]
    if not fits(value):
        raise FrostlineError(
            f"{path}: {key} in {TABLE} must be {expected}, got {_got(value)}. Write, for instance"
            f"\n\n  {example}"
        )


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _is_table_of_lists(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_list, value.values()))


def _is_severity(value: Any) -> bool:
    return value in FAIL_ON


_KEYS = {
    "select": (_is_list, "a list of codes or names of rules", 'select = ["FRZ1", "FRZ2"]'),
    "ignore": (_is_list, "a list of codes or names of rules", 'ignore = ["FRZ201"]'),
    "per-name-ignores": (
        _is_table_of_lists,
        "a table of lists",
        'per-name-ignores = { "backbone.bn*" = ["FRZ101"] }',
    ),
    "fail-on": (_is_severity, f"one of {', '.join(FAIL_ON)}", 'fail-on = "error"'),
}


def _got(value: Any) -> str:
    kind = {"str": "the text ", "dict": "the table ", "list": "the list "}
    return f"{kind.get(type(value).__name__, '')}{value!r}"
