"""That documentation runs: docstrings here, README.md and docs through the root's conftest.py."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import frostline

ROOT = Path(__file__).parents[1]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = ["frostline"] + [
    module.name for module in pkgutil.walk_packages(frostline.__path__, "frostline.")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert result.failed == 0, capsys.readouterr().out


PAGES = {
    "good": "```python\nx = 1\n```\ntext\n```python\nassert x == 1\n```\n",
    "wrong": "```python\nassert 1 == 2\n```\n",
    "printed": "```python\n>>> 1 + 1\n3\n```\n",
    "stranger": "```python\nx\n```\n",  # good.md's x must not be seen here
    "raises": "```python\nimport warnings\nwarnings.warn('warnings are errors')\n```\n",
}


def test_an_example_that_fails_fails_the_run(tmp_path: Path) -> None:
    for file in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "docs").mkdir()
    for name, text in PAGES.items():
        (tmp_path / "docs" / f"{name}.md").write_text(text)
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", "docs"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    failed = set(re.findall(r"^FAILED docs/(\w+)\.md", run.stdout, re.MULTILINE))
    assert failed == PAGES.keys() - {"good"}, run.stdout
    assert run.stdout.count("PASSED docs/good.md") == 2


def test_no_python_fence_escapes() -> None:
    pages = [page for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")] if page.exists()]
    assert pages
    fence = re.compile(r"^\s*(?:```+|~~~+|:::+)\s*(?!python\s*$)\{?(?:[Pp]y|code)\S*", re.M)
    escaped = {
        str(page.relative_to(ROOT)): match.group().strip()
        for page in pages
        for match in fence.finditer(page.read_text())
    }
    assert escaped == {}, "write ```python, which is executed, or a language that is not Python"
