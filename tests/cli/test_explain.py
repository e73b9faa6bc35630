"""`frostline explain`: the command, its JSON, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from frostline.cli.main import run

pytestmark = pytest.mark.usefixtures("beside_the_targets")

SCHEMA = Path(__file__).parents[2] / "docs/formats/explanation-v1.schema.json"


def explain(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(["explain", *words])
    return code, *capsys.readouterr()


def test_it_explains_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = explain(capsys, "classifier.py:build")
    assert (code, err) == (0, "")
    assert out.startswith("Explanation  Net: ")
    assert max(map(len, out.splitlines())) <= 80


def test_json_is_alone_on_stdout_and_fits_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = explain(capsys, "prints.py:build", "--json", "--microbatches", "4")
    assert code == 0
    document = json.loads(out)
    jsonschema.validate(document, json.loads(SCHEMA.read_text()))
    assert document["microbatches"] == 4


def test_a_run_takes_the_batch_of_the_target(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = explain(capsys, "classifier.py:setup", "backbone", "--run")
    assert code == 0
    assert "run once as model(" in out
    assert "in the run" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["classifier.py:build", "--run"], "gives no batch, so there is nothing to run"),
        (["classifier.py:build", "bakbone"], "'backbone'"),
        (["classifier.py:build", "--microbatches", "0"], "x>=1"),
        (["classifier.py"], "frostline explain classifier.py:setup"),
        (["nosuch.py:build"], "nosuch.py"),
        (["classifier.py:build", "--width", "4"], "stands behind --"),
    ],
)
def test_what_is_refused_exits_2_without_a_traceback(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    code, out, err = explain(capsys, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "frostline", "explain", "classifier.py:build", "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == 1
