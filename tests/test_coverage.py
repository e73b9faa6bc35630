"""docs/coverage.md: current, complete, and every test that it names is there."""

from __future__ import annotations

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from tests.coverage_table import PAGE, ROWS, VERDICTS, Row, page

ROOT = Path(__file__).parents[1]
# Nothing is claimed there, so that there may be nothing to show.
WITHOUT_A_TEST = {"planned", "out of scope"}
NAMED = [row for row in ROWS if row.test is not None]


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text() == page(), "run: python tests/coverage_table.py"


def test_every_row_is_there_once() -> None:
    failures = [f"F{number}" for number in range(1, 86)]
    assert [row.id for row in ROWS if row.id.startswith("F")] == failures
    assert max(Counter(row.id for row in ROWS).values()) == 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_a_row_says_what_and_how(row: Row) -> None:
    assert row.verdict in VERDICTS
    assert row.failure
    assert row.by
    assert "|" not in row.failure + row.by + (row.test or "")
    assert row.test is not None or row.verdict in WITHOUT_A_TEST


@cache
def functions(file: str) -> dict[str, bool]:
    """Test functions of a file, and whether each has parameters to be chosen from."""
    tree = ast.parse((ROOT / file).read_text())
    return {
        node.name: any("parametrize" in ast.unparse(d) for d in node.decorator_list)
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
    }


@pytest.mark.parametrize("row", NAMED, ids=lambda row: row.id)
def test_the_test_is_there(row: Row) -> None:
    file, name = str(row.test).split("::")
    assert name.startswith("test_")
    assert name.partition("[")[0] in functions(file)


class Collected:
    """A pytest plugin that keeps the ids of what was collected."""

    def __init__(self) -> None:
        self.ids: set[str] = set()

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.ids |= {item.nodeid for item in items}


def collect(tests: list[str]) -> set[str]:
    """The ids among `tests` that pytest knows."""
    collected = Collected()
    files = sorted({test.partition("::")[0] for test in tests})
    quiet = ["--collect-only", "-qq", "-p", "no:cacheprovider"]
    pytest.main([*quiet, "--rootdir", str(ROOT), *(str(ROOT / f) for f in files)], [collected])
    return collected.ids & set(tests)


def test_the_parameters_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    # Plugins were loaded by the run around this one, and complain when that happens twice.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    chosen = [str(row.test) for row in NAMED if "[" in str(row.test)]
    assert sorted(set(chosen) - collect(chosen)) == []
    missing = "tests/test_mutations.py::test_a_write_is_named[telepathy]"
    assert collect([missing]) == set()
