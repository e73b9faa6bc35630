"""`frostline summary`: the command, its JSON, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from frostline.cli.main import run

pytestmark = pytest.mark.usefixtures("beside_the_targets")

SCHEMA = Path(__file__).parents[2] / "docs/formats/summary-v1.schema.json"


def summary(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(["summary", *words])
    return code, *capsys.readouterr()


def test_it_shows_totals_and_the_tree_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = summary(capsys, "classifier.py:setup")
    assert (code, err) == (0, "")
    assert out.startswith("Summary of Net: ")
    assert "state of AdamW" in out
    assert "of model(batch[0])" in out
    assert max(map(len, out.splitlines())) <= 80


def test_depth_only_and_sort_choose_the_rows(capsys: pytest.CaptureFixture[str]) -> None:
    def names(*words: str) -> list[str]:
        _, out, _ = summary(capsys, "classifier.py:build", *words)
        tree = out.partition("  module ")[2].partition("\n\n")[0].splitlines()[1:]
        return [line.split()[0] for line in tree]

    assert names("--depth", "0", "--only", "mixed") == ["(root)"]
    assert names("--only", "trainable") == ["head"]
    assert set(names("--sort", "name")) == set(names())
    sizes = names("--sort", "parameters", "--depth", "1")
    assert sizes[0] == "(root)"


def test_json_is_alone_on_stdout_and_fits_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = summary(capsys, "prints.py:build", "--json")
    assert code == 0
    jsonschema.validate(json.loads(out), json.loads(SCHEMA.read_text()))


def test_a_batch_that_does_not_fit_costs_the_activations_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "odd.py").write_text(
        "import torch\n\n\ndef build():\n"
        "    return {'model': torch.nn.Linear(3, 1), 'batch': (torch.zeros(2, 7), 0)}\n"
    )
    code, out, err = summary(capsys, f"{tmp_path / 'odd.py'}:build")
    assert code == 0
    assert "Saved activations are left out: model(batch[0]) raised RuntimeError" in err
    assert "pass batch= to predict them" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["classifier.py:build", "--depth", "-1"], "x>=0"),
        (["classifier.py:build", "--only", "lazy"], "trainable"),
        (["classifier.py"], "frostline summary classifier.py:setup"),
        (["nosuch.py:build"], "nosuch.py"),
        (["backbones.safetensors:build"], "backbones.safetensors"),
        (["classifier.py:build", "backbone"], "backbone"),
    ],
)
def test_what_is_refused_exits_2_without_a_traceback(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    code, out, err = summary(capsys, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "Traceback" not in err


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "frostline", "summary", "classifier.py:build", "--json"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "Net"
