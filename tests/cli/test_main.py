"""Exit codes and what is said, for each way of ending."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from frostline.cli.main import cli, run
from frostline.errors import SelectionError


@click.command()
@click.argument("how")
@click.pass_context
def _ending(context: click.Context, how: str) -> None:
    if how == "refused":
        raise SelectionError("nothing matches 'bakbone'")
    if how == "bug":
        raise ZeroDivisionError("ours")
    if how == "interrupted":
        raise KeyboardInterrupt
    context.exit(1 if how == "findings" else 0)


@pytest.fixture
def _with_ending() -> object:
    cli.add_command(_ending, "ending")
    yield
    del cli.commands["ending"]


@pytest.mark.usefixtures("_with_ending")
@pytest.mark.parametrize(
    ("how", "code", "said", "traceback"),
    [
        ("fine", 0, "", False),
        ("findings", 1, "", False),
        ("refused", 2, "Error: nothing matches 'bakbone'", False),
        ("bug", 3, "This is a bug of frostline", True),
        ("interrupted", 130, "Interrupted.", False),
    ],
)
def test_each_ending_has_its_code(
    how: str, code: int, said: str, traceback: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ending", how]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert ("Traceback" in err) is traceback


@pytest.mark.parametrize("wrong", [["nosuch"], ["demo", "--nosuch"], ["demo", "--seeds", "9"]])
def test_wrong_use_exits_2_and_says_how(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(wrong) == 2
    err = capsys.readouterr().err
    assert "Usage: frostline" in err
    assert "Traceback" not in err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert "demo" in text
    assert "\\" not in text  # a marker of the formatter, shown as it stands
    assert max(map(len, text.splitlines())) <= 80
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("frostline 0.")


def test_python_dash_m() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "frostline", "nosuch"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "No such command 'nosuch'" in done.stderr


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m frostline --help | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
