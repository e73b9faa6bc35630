"""For tests of targets: where they run, and that each leaves everything as it was."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.sharing import shared


@pytest.fixture
def beside_the_targets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(Path(__file__).parent / "targets")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    # Scripts of another test have a package of this name, too, and stay imported.
    for name in [name for name in sys.modules if name.partition(".")[0] == "package"]:
        monkeypatch.delitem(sys.modules, name)
    before, modules = shared(), dict(sys.modules)
    yield
    assert shared() == before
    assert [name for name, module in modules.items() if sys.modules.get(name) is not module] == []
