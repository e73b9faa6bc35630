"""`frostline guard SCRIPT` on scripts as people write them: what is said, and the exit code."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from frostline.cli.main import run

SCRIPTS = Path(__file__).parent / "scripts"
STATISTICS = ["running_mean", "running_var", "num_batches_tracked"]


@pytest.fixture(autouse=True)
def _beside_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SCRIPTS)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    # torch.distributed, once begun in this process, puts the rank in front of every line.
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


def _json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run(["guard", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def _moved(result: dict[str, Any]) -> dict[str, list[str]]:
    return {
        model["model"]: [c["name"] for c in model["changes"] if c["severity"] == "drift"]
        for model in result["models"]
    }


def _statistics(norm: str) -> list[str]:
    return [f"{norm}.{name}" for name in STATISTICS]


@pytest.mark.parametrize(
    ("command", "code", "moved", "steps"),
    [
        (["flags_and_norm.py"], 1, {"Net": _statistics("backbone.1")}, [6]),
        (["flags_and_norm.py", "--eval-backbone"], 0, {"Net": []}, [6]),
        (["uses_neighbour.py"], 0, {"Sequential": []}, [3]),
        (["workers.py", "fork"], 0, {"Sequential": []}, [2]),
        (["mixed_precision.py"], 1, {"Sequential": _statistics("1")}, [4]),
        (
            ["gan.py"],
            1,
            {"Generator": [], "Sequential": _statistics("1"), "Discriminator": []},
            [3, 3, 3],
        ),
        (["freezes_late.py"], 1, {"Sequential": ["0.weight", "0.bias"]}, [6]),
        (["unfreezes.py"], 0, {"ModuleDict": []}, [6]),
        (["no_optimizer.py"], 1, {"Sequential": _statistics("1")}, [0]),
        (["closure.py"], 1, {"Sequential": _statistics("1")}, [2]),
        (["raises.py"], 1, {"Sequential": _statistics("1")}, [2]),
        (["exits.py", "3"], 3, {}, []),
        (["exits.py", "words"], 1, {}, []),
        (["exits.py", "0"], 0, {}, []),
        (["prints_much.py"], 0, {}, []),
        (["--frozen", "head", "uses_neighbour.py"], 2, None, []),
        (["--frozen", "1", "uses_neighbour.py"], 1, {"Sequential": ["1.weight", "1.bias"]}, [3]),
        (["--frozen", "0", "--frozen", "1", "uses_neighbour.py"], 1, None, [3]),
        (["--steps", "2", "flags_and_norm.py"], 1, {"Net": _statistics("backbone.1")}, [2]),
        (["--steps", "1", "gan.py"], 1, None, [1, 1, 1]),
        (["--steps", "7", "flags_and_norm.py", "--eval-backbone"], 0, {"Net": []}, [6]),
    ],
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_script(
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    code: int,
    moved: dict[str, list[str]] | None,
    steps: list[int],
) -> None:
    if code == 2:
        assert run(["guard", *command]) == 2
        return
    found, result = _json(capsys, *command)
    assert found == code
    if moved is not None:
        assert _moved(result) == moved
    assert [model["steps"] for model in result["models"]] == steps


def test_the_step_and_the_cause_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    _, late = _json(capsys, "freezes_late.py")
    for change in late["models"][0]["changes"]:
        assert (change["step"], change["since"]) == (4, 3)
        assert "momentum" in change["cause"]
    _, norm = _json(capsys, "flags_and_norm.py")
    for change in norm["models"][0]["changes"]:
        assert change["step"] == 1
        assert "ran forward in training mode" in change["cause"]
        assert change["mend"] == "fl.freeze(model, 'backbone.1')"


def test_what_the_report_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["guard", "flags_and_norm.py", "--epochs", "1"]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("epoch 0 done\nfrostline guard flags_and_norm.py: 3 of 7 frozen tensors")
    assert "--pinpoint" in out
    assert "fl.freeze(model, 'backbone.1')" in out
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["uses_neighbour.py"], "nothing frozen moved"),
        (["exits.py", "0"], "no model was seen"),
        (["--frozen", "**", "--steps", "1", "gan.py"], "10 of 15 frozen tensors moved"),
        (["unfreezes.py"], "became trainable"),
        (["gan.py"], "Generator: nothing is frozen, over 3 steps"),
        (["no_optimizer.py"], "with no optimizer step seen"),
        (["--steps", "2", "closure.py"], "Stopped after 2 steps, as asked."),
    ],
)
def test_words_for_each_end(
    capsys: pytest.CaptureFixture[str], command: list[str], said: str
) -> None:
    run(["guard", *command])
    out = capsys.readouterr().out
    assert said in out
    assert max(map(len, out.splitlines())) <= 80


def test_nothing_frozen_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "import torch\nnet = torch.nn.Linear(2, 1)\nspare = net.spare = torch.nn.Linear(2, 2)\n"
        "opt = torch.optim.SGD(net.parameters(), 0.1)\nnet(torch.ones(1, 2)).sum().backward()\n"
        "opt.step()\n"
    )
    assert run(["guard", str(script)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "nothing was frozen" in out
    assert "frostline guard --frozen NAME" in out
    assert "never moved, though trainable" in out
    assert "spare.weight no gradient" in out


def test_an_exception_passes_on_and_the_report_goes_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["guard", "raises.py"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    trace, _, report = err.partition("frostline guard raises.py")
    assert trace.startswith("Traceback (most recent call last):\n  File ")
    assert trace.count("raises.py") == trace.count("File ") == 2
    assert trace.endswith("\nRuntimeError: out of luck\n")
    assert "The script ended early, by RuntimeError" in report


def test_a_name_in_no_model_is_told_at_the_first_step_and_at_the_end() -> None:
    # In a process of its own: the warning goes where Python's logging has it go.
    done = _command("--frozen", "bakbone", "prints_steps.py")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[0].startswith("--frozen bakbone in Sequential: ")
    assert "'backbone'" in lines[0]
    # The script runs on: a later stage may still have such a model.
    assert lines[1:] == ["step 1", "step 2"]
    assert "--frozen bakbone in Sequential" in done.stdout


def test_a_name_that_fits_a_later_model_is_no_wrong_use() -> None:
    done = _command("--frozen", "backbone", "prints_steps.py", "later")
    assert "--frozen backbone in Linear: " in done.stderr
    assert (done.returncode, "matches nothing" in done.stdout) == (0, False)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ([], "Missing argument 'SCRIPT'"),
        (["nosuch.py"], "no such file: nosuch.py"),
        (["package"], "is a directory"),
        (["-m", "no_such_module_at_all"], "no module named"),
        (["--steps", "0", "gan.py"], "--steps"),
        (["--nosuch", "gan.py"], "No such option"),
        (["--html", ".", "gan.py"], "directory"),
        (["--html", "gan.py/page.html", "gan.py"], "--html PATH"),
    ],
)
def test_wrong_use(capsys: pytest.CaptureFixture[str], command: list[str], said: str) -> None:
    assert run(["guard", *command]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_pinpoint_names_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    _, result = _json(capsys, "--pinpoint", "--steps", "1", "flags_and_norm.py")
    lines = {change["culprit"] for change in result["models"][0]["changes"]}
    text = (SCRIPTS / "flags_and_norm.py").read_text().splitlines()
    number = 1 + next(i for i, line in enumerate(text) if "self.head(self.backbone(x))" in line)
    assert lines == {f"flags_and_norm.py:{number}"}


def test_stdin_and_all_arguments_belong_to_the_script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("bob\n"))
    assert run(["guard", "asks.py"]) == 0
    assert capsys.readouterr().out.startswith("hello bob\n")
    assert run(["guard", "flags_and_norm.py", "--help"]) == 0
    assert "usage: flags_and_norm.py [-h] [--epochs EPOCHS]" in capsys.readouterr().out
    assert run(["guard", "-m", "package.training", "--help", "--", "-x"]) == 0
    assert capsys.readouterr().out.startswith("['--help', '--', '-x']\n")


def test_html_is_written_beside_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "guard.html"
    assert run(["guard", "--html", str(path), "flags_and_norm.py"]) == 1
    text = path.read_text()
    assert "3 frozen tensors moved" in text
    assert "backbone.1.running_mean" in text
    out, err = capsys.readouterr()
    assert "3 of 7 frozen tensors" in out
    assert err == f"{path} was written\n"


@pytest.mark.parametrize(
    ("behind", "hinted"),
    [(["--steps", "2"], True), (["--frozen", "x"], True), (["--stepping", "2"], False)],
)
def test_an_option_of_ours_behind_the_script(
    capsys: pytest.CaptureFixture[str], behind: list[str], hinted: bool
) -> None:
    assert run(["guard", "exits.py", "0", *behind]) == 0
    hint = f"{behind[0]} stands behind the script and was given to it"
    assert (hint in capsys.readouterr().err) is hinted


def _command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "frostline", "guard", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )


def test_under_json_stdout_has_nothing_else(tmp_path: Path) -> None:
    script = tmp_path / "children.py"
    script.write_text("import os\nprint('from python')\nos.system('echo from a child')\n")
    done = _command("--json", str(script))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["script"] == str(script)
    assert sorted(done.stderr.splitlines()) == ["from a child", "from python"]


@pytest.mark.slow
def test_spawned_workers() -> None:
    done = _command("workers.py", "spawn")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("spawn: 2 batches\nfrostline guard workers.py: nothing frozen")


def test_a_reader_that_goes_away_stops_the_script_as_python_does() -> None:
    command = f"{sys.executable} -m frostline guard prints_much.py | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "line 0 of standard output\n"
    assert "BrokenPipeError" in done.stderr
    assert "bug of frostline" not in done.stderr


def test_other_ranks_tell_only_what_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    page = tmp_path / "page.html"
    assert run(["guard", "--html", str(page), "flags_and_norm.py", "--epochs", "1"]) == 1
    out, err = capsys.readouterr()
    assert out == "epoch 0 done\n"
    written, *lines = err.splitlines()
    assert written == f"{tmp_path / 'page.rank1.html'} was written"
    assert lines
    assert all(line.startswith("[rank 1]") for line in lines)
    assert any("backbone.1.running_mean" in line for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["page.rank1.html"]
    assert run(["guard", "uses_neighbour.py"]) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += [f"--master-port={port}", "-m", "frostline", "guard", "distributed.py"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.count("frostline guard distributed.py: 3 of 7 frozen tensors moved") == 1
    assert "[rank 1]   1.running_mean" in done.stderr
    assert done.returncode == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "model"), [("huggingface.py", "Net"), ("with_lightning.py", "Lit")]
)
def test_trainers(script: str, model: str) -> None:
    done = _command("--json", "--steps", "2", script, "50")
    assert done.returncode == 1, done.stderr
    result = json.loads(done.stdout)
    assert _moved(result) == {model: _statistics("backbone.1")}
    assert (result["stopped_after"], result["models"][0]["steps"]) == (2, 2)
    assert "the script's own finally ran" in done.stderr
    assert "caught something" not in done.stderr
