"""A command with a target: its words, its exit codes, and where prints go."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frostline.cli.main import cli, run
from frostline.cli.prints import prints_to_stderr
from frostline.cli.targets import loaded, target_command
from frostline.cli.targets.command import split_words

pytestmark = pytest.mark.usefixtures("beside_the_targets", "with_describe")


@target_command
@click.argument("select", required=False)
def _describe(target: str, select: str | None, arguments: tuple[str, ...], as_json: bool) -> None:
    """Describe TARGET."""
    with prints_to_stderr(as_json), loaded(target, arguments) as setup:
        told = f"{type(setup.model).__name__} {select} {sys.argv[1:]}"
    click.echo(f'"{told}"' if as_json else told)


@pytest.fixture
def with_describe() -> Iterator[None]:
    cli.add_command(_describe, "describe")
    yield
    del cli.commands["describe"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["classifier.py:build"], "Net None []"),
        (["classifier.py:build", "backbone"], "Net backbone []"),
        (["classifier.py:build", "--", "--data", "x"], "Net None ['--data', 'x']"),
        (["classifier.py:build", "head", "--", "y"], "Net head ['y']"),
        (["classifier.py:build", "--json", "--", "--json", "--"], "Net None ['--json', '--']"),
        (["classifier.py:build", "--"], "Net None []"),
    ],
)
def test_what_stands_behind_the_dashes_is_theirs(
    capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert run(["describe", *words]) == 0
    out, err = capsys.readouterr()
    assert out == (f'"{told}"\n' if "--json" in words else f"{told}\n")
    assert err == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["classifier.py"], "  frostline describe classifier.py:setup\n"),
        (["gives.py:number"], "Error: number of gives.py gives"),
        (["fails_early.py:model"], "RuntimeError: no data here\n"),
        (["meddles.py:exits"], "Error: meddles.py:exits: your code called sys.exit(3)"),
        ([], "Missing argument 'TARGET'"),
        (["--", "x"], "Missing argument 'TARGET'"),
        (["t.py:f", "a", "b"], "unexpected extra argument"),
        (["t.py:f", "--data", "x"], "behind --: frostline describe TARGET -- --data\n"),
    ],
)
def test_wrong_use_and_their_failures_exit_2(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert run(["describe", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "bug of frostline" not in err


def test_interrupted_in_their_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["describe", "meddles.py:interrupted"]) == 130
    assert capsys.readouterr().err.endswith("Interrupted.\n")


@pytest.mark.parametrize("words", [["--json"], []])
def test_under_json_their_prints_go_to_stderr(
    capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert run(["describe", "prints.py:build", *words]) == 0
    out, err = capfd.readouterr()
    prints = {"while imported", "while called", "past Python", "in a child"}
    if words:
        assert out == '"Linear None []"\n'
        assert set(err.splitlines()) == prints
    else:
        assert set(out.splitlines()) == prints | {"Linear None []"}
        assert err == ""


def test_help_says_how_a_target_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["describe", "--help"]) == 0
    text = capsys.readouterr().out
    assert "describe [OPTIONS] TARGET [SELECT] [-- ARGS]...\n" in text
    assert "The file is imported, which runs it" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


@given(st.lists(st.sampled_from(["--", "a", "--json"])))
def test_words_are_split_once(words: list[str]) -> None:
    own, theirs = split_words(words)
    assert "--" not in own
    assert [*own, *["--"][: len(words) - len(own)], *theirs] == words
