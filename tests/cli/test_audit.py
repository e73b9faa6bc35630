"""`frostline audit`: the command, its outputs, its policy, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jsonschema
import pytest

from frostline.cli.main import run

pytestmark = pytest.mark.usefixtures("beside_the_targets")

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/formats/audit-v1.schema.json").read_text())


def audit(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(["audit", *words])
    return code, *capsys.readouterr()


@contextmanager
def inside(folder: Path) -> Iterator[None]:
    """The current directory, until the fixture looks whether it is as it was."""
    home = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(home)


def target(folder: Path, body: str, name: str = "odd.py") -> str:
    """A file with a function `build` of this body."""
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path = folder / name
    path.write_text(f"import torch\nfrom torch import nn\n\n\ndef build():\n{lines}")
    return f"{path}:build"


NORM = "net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))\n"
FROZEN = NORM + "net[0].requires_grad_(False)\nnet[1].requires_grad_(False).running_var.fill_(2.)\n"


# --- outputs -------------------------------------------------------------------------------------


def test_a_leak_is_told_and_exits_1(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = audit(capsys, "classifier.py:build")
    assert (code, err) == (1, "")
    assert out.startswith("Audit  Net: 2 errors")
    assert "\n\nbackbone.{1,4}  (2 places)\n  error      FRZ101 batchnorm-stats-update\n" in out
    assert "  mend       fl.freeze(model, fl.FLAGGED)\n" in out
    assert max(map(len, out.splitlines())) <= 80


def test_what_holds_exits_0(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    held = target(
        tmp_path, f"import frostline as fl\n{FROZEN}fl.freeze(net, ['0', '1'])\nreturn net"
    )
    code, out, _ = audit(capsys, held)
    assert code == 0, out
    assert out.startswith("Audit  Sequential: nothing found")


def test_the_target_s_own_batch_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = audit(capsys, "classifier.py:setup", "--json")
    told = json.loads(out)
    assert code == 1
    assert told["how"] == "measured"
    assert "compute_loss" in told["called"]
    assert told["claim"]["text"] == 'frozen="backbone"'
    assert told["drift"].keys() <= set(told["will_change"])


def test_json_is_alone_on_stdout_and_fits_the_schema(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    noisy = target(tmp_path, f"print('noise')\n{FROZEN}return net")
    code, out, err = audit(capsys, noisy, "--json")
    assert code == 1
    jsonschema.validate(json.loads(out), SCHEMA)
    assert "noise" in err
    _, out, _ = audit(capsys, noisy)
    assert out.startswith("noise\nAudit")


def test_on_meta_nothing_is_allocated_and_it_is_predicted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    huge = target(
        tmp_path,
        "net = nn.Sequential(nn.BatchNorm1d(500_000), nn.Linear(500_000, 1_000_000))\n"
        "net[0].requires_grad_(False)\n"
        "return {'model': net, 'batch': torch.randn(4, 500_000)}",
    )
    code, out, _ = audit(capsys, huge, "--meta", "--json")
    told = json.loads(out)
    jsonschema.validate(told, SCHEMA)
    assert (code, told["how"]) == (1, "predicted")
    assert set(told["will_change"]) >= {"0.running_mean", "0.running_var"}
    assert told["counts"]["parameters"]["bytes"] > 2e12


def test_annotations_for_github(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    code, out, err = audit(capsys, "classifier.py:build", "--github")
    assert code == 1
    line = 1 + Path("classifier.py").read_text().splitlines().index("def build():")
    head = f"::error file=classifier.py,line={line},title=FRZ101 batchnorm-stats-update::"
    assert err.startswith(f"{head}backbone.{{1,4}}: BatchNorm2d in training mode")
    assert out.startswith("Audit  Net")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(ROOT))
    _, _, err = audit(capsys, "classifier.py:model", "--github", "--json")
    assert err.startswith("::error file=tests/cli/targets/classifier.py,line=")


def test_annotations_for_a_module(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_WORKSPACE", os.getcwd())
    _, _, err = audit(capsys, "classifier:build", "--github")
    assert err.startswith("::error file=classifier.py,line=")


def test_a_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("frostline.reports.audit_page")
    path = tmp_path / "new" / "audit.html"
    code, out, err = audit(capsys, "classifier.py:build", "--html", str(path))
    assert code == 1
    assert f"{path} was written" in err
    assert out.startswith("Audit")
    assert "FRZ101" in path.read_text()


def test_a_page_that_cannot_be_written_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.html").write_text("mine")
    code, out, err = audit(capsys, "not_to_be_run.py:f", "--html", str(tmp_path / "mine.html"))
    assert (code, out) == (2, "")
    assert "--html PATH" in err
    assert (tmp_path / "mine.html").read_text() == "mine"


# --- policy --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ([], 1),
        (["--fail-on", "never"], 0),
        (["--fail-on", "error"], 1),
        (["--ignore", "FRZ101"], 0),
        (["--ignore", "FRZ2,batchnorm-stats-update"], 0),
        (["--ignore", "FRZ2", "--ignore", "FRZ101"], 0),
        (["--select", "FRZ102"], 0),
        (["--select", "FRZ1"], 1),
    ],
)
def test_options_say_what_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], code: int
) -> None:
    assert audit(capsys, target(tmp_path, f"{FROZEN}return net"), *words)[0] == code


def test_a_warning_fails_and_an_error_threshold_lets_it_pass(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quiet = target(tmp_path, f"{FROZEN}net[1].eval()\nreturn net")
    assert audit(capsys, quiet)[0] == 1
    code, out, _ = audit(capsys, quiet, "--fail-on", "error")
    assert code == 0
    assert "warning    FRZ102 eval-undone-by-train" in out


def test_the_project_s_file_counts_and_options_override_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    leaky = target(tmp_path, f"{FROZEN}return net")

    def asked(said: str, *words: str) -> tuple[int, str]:
        (tmp_path / "pyproject.toml").write_text(f"[tool.frostline]\n{said}\n")
        with inside(tmp_path):
            return audit(capsys, leaky, *words)[:2]

    code, out = asked('per-name-ignores = {"1" = ["FRZ101"], "0" = ["FRZ3"]}')
    assert code == 0
    assert "  ignored    1 finding\n" in out
    assert '  ignored    nothing by FRZ3 at "0": leave it out\n' in out
    assert asked('select = ["FRZ102"]')[0] == 0
    assert asked('select = ["FRZ102"]', "--select", "FRZ")[0] == 1
    assert asked('fail-on = "never"')[0] == 0
    assert asked('fail-on = "never"', "--fail-on", "warning")[0] == 1


def test_a_wrong_file_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.frostline]\nselct = ["FRZ2"]\n')
    with inside(tmp_path):
        code, out, err = audit(capsys, target(tmp_path, "raise SystemExit(7)"))
    assert (code, out) == (2, "")
    assert "pyproject.toml: [tool.frostline] has the key 'selct'" in err


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nosuch.py:build"], "no such file: nosuch.py"),
        (["fails_early.py:build"], "your code raised"),
        (["exits_early.py:build"], "sys.exit"),
        (["classifier.py:words"], "Expected a model"),
        (["classifier.py:biuld"], "build"),
        (["classifier.py:build", "--select", "FRZ777"], "no rule is called 'FRZ777'"),
        (["classifier.py:build", "--ignore", "batchnorm"], "'batchnorm-stats-update'"),
        (["classifier.py:build", "--fail-on", "fatal"], "fatal"),
        (["classifier.py"], "frostline audit classifier.py:setup"),
        (["backbones.pt"], "backbones.pt"),
        (["classifier.py:build", "--width", "4"], "stands behind --"),
    ],
)
def test_what_is_refused_exits_2_without_a_bug(
    capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    code, out, err = audit(capsys, *words)
    assert (code, out) == (2, "")
    assert says in err
    assert "bug of frostline" not in err


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (f"{NORM}raise KeyError('data')", "your code raised KeyError"),
        (f"{NORM}return {{'model': net, 'batch': torch.randn(4, 7)}}", "raised RuntimeError"),
        (f"{NORM}return {{'model': net, 'frozen': 'bakbone'}}", "bakbone"),
        (
            f"{NORM}return {{'model': net, 'compute_loss': lambda m, b: m(b).sum()}}",
            "no batch to call it with",
        ),
        (
            f"{NORM}data = torch.utils.data.DataLoader([1])\n"
            "return {'model': net, 'batch': data}",
            "next(iter(loader))",
        ),
        (
            f"{NORM}def loss(model, batch):\n    raise KeyError('labels')\n"
            "return {'model': net, 'batch': torch.randn(4, 3), 'compute_loss': loss}",
            "labels",
        ),
        (
            f"{NORM}return {{'model': net, 'batch': torch.randn(4, 3), "
            "'compute_loss': lambda m, b: None}",
            "compute_loss",
        ),
    ],
    ids=["raises", "bad batch", "frozen", "no batch", "loader", "loss raises", "no loss"],
)
def test_a_bad_set_up_gives_one_clear_message(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, body: str, says: str
) -> None:
    code, out, err = audit(capsys, target(tmp_path, body))
    assert (code, out) == (2, ""), err
    assert err.startswith("Error: ")
    assert says in err
    assert "bug of frostline" not in err


def test_a_terminal_shows_that_something_goes_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    code, _, err = audit(capsys, "classifier.py:build", "--json")
    assert code == 1
    assert "auditing Net" in err


def test_a_hostile_name_reaches_no_output_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    evil = "\\x1b]0;x\\x07\\n::error::\\u202e"
    hostile = target(
        tmp_path,
        f"net = nn.Module()\nnet.add_module('{evil}', nn.BatchNorm1d(3))\n"
        "return {'model': net.requires_grad_(False)}",
    )
    code, out, err = audit(capsys, hostile, "--github")
    assert code == 1
    assert all(c == "\n" or c.isprintable() for c in out + err)
    assert all(line.count("::") == 2 for line in err.splitlines())
    assert [line for line in out.splitlines() if line.lstrip().startswith("::")] == []


# --- example targets -----------------------------------------------------------------------------

EXAMPLES = sorted((ROOT / "examples" / "targets").glob("*.py"))
BY_LIBRARIES = {"hf_classifier", "lora", "detector"}  # which take seconds to import


def said_by(example: Path) -> set[tuple[str, str]]:
    """Codes and severities that the comment on top of an example names."""
    head = example.read_text().split('"""')[1]
    return set(re.findall(r"^  (FRZ\d{3}) (error|warning|info)", head, re.MULTILINE))


@pytest.mark.parametrize(
    "example",
    [pytest.param(e, marks=pytest.mark.slow if e.stem in BY_LIBRARIES else ()) for e in EXAMPLES],
    ids=lambda example: example.stem,
)
def test_an_example_is_told_what_its_comment_says(
    capsys: pytest.CaptureFixture[str], example: Path
) -> None:
    code, out, _ = audit(capsys, f"{example}:setup", "--json")
    told = json.loads(out)
    jsonschema.validate(told, SCHEMA)
    assert code == 1
    assert told["how"] == "measured"
    found, said = {(one["code"], one["severity"]) for one in told["findings"]}, said_by(example)
    assert said <= found
    assert {one for one in found - said if one[1] != "info"} == set()


def test_all_examples_are_there() -> None:
    assert {example.stem for example in EXAMPLES} == {
        "two_branches", "detector", "hf_classifier", "lora", "teacher", "gan",
    }  # fmt: skip
