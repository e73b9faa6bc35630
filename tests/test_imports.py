"""What `import frostline` costs in modules. Each question is asked in a fresh interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NEW_MODULES = """
import sys, json
import torch
before = set(sys.modules)
{imports}
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(new - sys.stdlib_module_names)))
"""

WITHOUT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
{code}
"""

EXTRAS = ["matplotlib", "lightning", "pytorch_lightning", "transformers", "accelerate", "timm"]


def python(code: str, cwd: Path) -> str:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def new_packages(imports: str, cwd: Path) -> set[str]:
    return set(json.loads(python(NEW_MODULES.format(imports=imports), cwd)))


def test_import_brings_nothing_beside_torch(tmp_path: Path) -> None:
    assert new_packages("import frostline", tmp_path) == {"frostline"}


def test_an_import_would_be_seen(tmp_path: Path) -> None:
    assert new_packages("import frostline, click", tmp_path) == {"frostline", "click"}


@pytest.mark.parametrize(
    "code",
    ["import frostline", "import runpy; runpy.run_module('frostline', run_name='__main__')"],
    ids=["library", "command line"],
)
def test_works_without_the_extras(tmp_path: Path, code: str) -> None:
    asked_for_help = "sys.argv = ['frostline', '--help']\ntry:\n    {}\nexcept SystemExit as end:"
    code = asked_for_help.format(code) + "\n    assert not end.code, end.code"
    python(WITHOUT.format(absent=EXTRAS, code=code), tmp_path)


def test_the_command_is_installed() -> None:
    command = Path(sys.executable).with_name("frostline")
    run = subprocess.run([command, "--help"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "demo" in run.stdout


def test_typing_information_is_installed() -> None:
    import frostline

    assert (Path(frostline.__path__[0]) / "py.typed").exists()
