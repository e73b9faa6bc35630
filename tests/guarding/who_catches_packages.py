"""Published packages that compare checkpoints, run from an environment of their own.

The project does not depend on them and CI does not install them, so what they say is kept in
who_catches_packages.json, with their versions. `python tests/guarding/who_catches.py --packages
VENV` writes it; VENV is an environment into which they were installed by pip.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from tests.guarding.who_catches_changes import CHANGES, Change, Live
from tests.guarding.who_catches_columns import verdict

RESULTS = Path(__file__).with_name("who_catches_packages.json")
_FILES = ["{a}/model.safetensors", "{b}/model.safetensors"]
_LIMIT = 120  # seconds for one comparison


class Tool(NamedTuple):
    """A command that compares two checkpoints.

    Attributes:
        package: its name for pip.
        command: what is run; {a} and {b} are folders with a model.safetensors each, {out} a file.
        rule: when we say that it saw a change, in words.
        sees: the rule, over what it printed and what it wrote to {out}.
    """

    package: str
    command: list[str]
    rule: str
    sees: Callable[[str, str], bool]


def _structure(report: dict[str, Any]) -> bool:
    return any(report[key] for key in ("added", "removed", "shape_changed", "dtype_changed"))


def _sft(text: str, _: str) -> bool:
    return _structure(json.loads(text))


def _sft_delta(text: str, _: str) -> bool:
    report = json.loads(text)
    values = report.get("value_diffs", {}).values()
    return _structure(report) or any(value["status"] != "equal" for value in values)


def _modeldelta(_: str, out: str) -> bool:
    return any(module["frob_norm"] != 0 for module in json.loads(out)["modules"])


TOOLS = {
    "ckptkit": Tool(
        "ckptkit",
        ["ckptkit", "diff", *_FILES],
        "it does not say that they are structurally identical",
        lambda text, _: "structurally identical" not in text,
    ),
    "sft": Tool(
        "sft-cli",
        ["sft", "diff", *_FILES, "--json"],
        "something was added or removed, or has another shape or dtype",
        _sft,
    ),
    "sft --delta": Tool(
        "sft-cli",
        ["sft", "diff", *_FILES, "--json", "--delta"],
        "as sft, or the status of a tensor is not `equal`",
        _sft_delta,
    ),
    "weightscope": Tool(
        "weightscope",
        ["weightscope", "diff", "{a}", "{b}"],
        "it does not say that they are bit-identical",
        lambda text, _: "bit-identical" not in text,
    ),
    "modeldelta": Tool(
        "modeldelta",
        ["modeldelta", "-q", "{a}", "{b}", "-o", "{out}"],
        "the norm of a difference is not 0",
        _modeldelta,
    ),
}


def run_all(venv: Path) -> None:
    """Run every tool on every change, and write RESULTS."""
    installed = _versions(venv)
    with tempfile.TemporaryDirectory() as folder:
        pairs = {change: _pair(Path(folder) / str(i), change) for i, change in enumerate(CHANGES)}
        found = {name: _column(venv, tool, installed, pairs) for name, tool in TOOLS.items()}
    RESULTS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _column(
    venv: Path, tool: Tool, installed: dict[str, str], pairs: dict[Change, tuple[Path, Path]]
) -> dict[str, Any]:
    version = installed.get(tool.package)
    cells = {c.name: _cell(venv, tool, c, pairs[c]) if version else "not installed" for c in pairs}
    said = {
        "package": tool.package,
        "version": version,
        "command": " ".join(tool.command).replace("/model.safetensors", ""),
        "a change is seen when": tool.rule,
    }
    return said | {"cells": cells}


def _cell(venv: Path, tool: Tool, change: Change, pair: tuple[Path, Path]) -> str:
    before, after = pair
    try:
        seen_anyway = _sees(venv, tool, before, before)
        return verdict(change.changed, _sees(venv, tool, before, after), seen_anyway)
    except subprocess.CalledProcessError:
        return "crash"


def _sees(venv: Path, tool: Tool, before: Path, after: Path) -> bool:
    out = after.parent / "out.json"
    command = [part.format(a=before, b=after, out=out) for part in tool.command]
    command[0] = str(venv / "bin" / command[0])
    # No network, and no line broken or coloured.
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "COLUMNS": "500", "NO_COLOR": "1"}
    done = subprocess.run(
        command, env=quiet, timeout=_LIMIT, check=True, capture_output=True, text=True
    )
    return tool.sees(done.stdout, out.read_text() if out.exists() else "")


@torch.no_grad()
def _pair(folder: Path, change: Change) -> tuple[Path, Path]:
    """The model saved before and after a change."""
    folder.mkdir(parents=True)
    live = Live(folder, change.with_nan, change.mapped)
    before, after = folder / "before", folder / "after"
    live.save(before / "model.safetensors")
    change.do(live)
    live.save(after / "model.safetensors")
    return before, after


def _versions(venv: Path) -> dict[str, str]:
    command = [str(venv / "bin" / "python"), "-m", "pip", "list", "--format", "json"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    names = {re.sub(r"[-_.]+", "-", row["name"]).lower(): row for row in json.loads(listed)}
    return {
        tool.package: names[tool.package]["version"]
        for tool in TOOLS.values()
        if tool.package in names
    }


def columns() -> dict[str, dict[str, str]]:
    """What the packages said when they were run last."""
    return {name: said["cells"] for name, said in results().items()}


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found
