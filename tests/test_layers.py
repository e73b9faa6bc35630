"""The shape of the source tree: what may import what, and how long things may be."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "frostline"
FILES = sorted(SOURCE.rglob("*.py"))
MAX_FILE, MEDIAN_FILE, MAX_FUNCTION = 500, 150, 80


def lint_imports(package: Path, config: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--config", config, "--no-cache"],
        env=os.environ | {"PYTHONPATH": str(package.parent)},
        cwd=config.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_imports_go_downward() -> None:
    run = lint_imports(SOURCE, ROOT / "pyproject.toml")
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("errors.py", "import frostline.selection"),
        ("selection.py", "import frostline.freezing"),
        ("freezing/__init__.py", "import frostline.demo"),
        ("selection.py", "import frostline"),
        ("novelty.py", ""),
    ],
    ids=["leaf", "value", "contract", "root", "undeclared"],
)
def test_the_contract_can_fail(tmp_path: Path, file: str, line: str) -> None:
    package = shutil.copytree(SOURCE, tmp_path / "src" / "frostline")
    config = Path(shutil.copy(ROOT / "pyproject.toml", tmp_path))
    with (package / file).open("a") as source:
        source.write(f"\n{line}\n")
    run = lint_imports(package, config)
    assert run.returncode == 1, run.stdout + run.stderr
    assert "BROKEN" in run.stdout


def functions(file: Path) -> Iterator[tuple[str, int]]:
    """Each function with its lines, docstring not counted."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            documented = ast.get_docstring(node, clean=False) or ""
            yield node.name, node.end_lineno - node.lineno + 1 - len(documented.splitlines())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_file_is_short_and_has_short_functions(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MAX_FILE
    assert {name: lines for name, lines in functions(file) if lines > MAX_FUNCTION} == {}


def test_most_files_are_short() -> None:
    lengths = sorted(len(file.read_text().splitlines()) for file in FILES)
    assert lengths[len(lengths) // 2] <= MEDIAN_FILE


def test_no_drawer_for_everything() -> None:
    assert [file for file in FILES if file.stem in {"utils", "util", "helpers", "misc"}] == []
