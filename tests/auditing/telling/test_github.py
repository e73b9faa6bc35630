"""Annotations as a runner of GitHub Actions reads them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frostline.auditing.finding import Finding
from frostline.auditing.telling.github import commands


def seen(where: str = "bn", said: str = "a fact", severity: str = "error") -> Finding:
    return Finding("FRZ101", "batchnorm-stats-update", severity, where, said, "mend()")  # type: ignore[arg-type]


def runner(line: str) -> tuple[str, dict[str, str], str]:
    """What actions/runner makes of a line (ActionCommand.TryParseV2)."""
    match = re.fullmatch(r"::([^ :]+)(?: (.*?))?::(.*)", line, re.DOTALL)
    assert match
    command, properties, data = match.groups()
    given = dict(pair.split("=", 1) for pair in (properties or "").split(",") if pair)
    return command, {key: unescaped(value) for key, value in given.items()}, unescaped(data)


def unescaped(text: str) -> str:
    for escape, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")):
        text = text.replace(escape, character)
    return text.replace("%25", "%")


def test_one_annotation_for_one_kind_of_finding() -> None:
    line = commands([seen(f"layer.{i}.bn") for i in range(53)], "src/train.py", 12)
    command, properties, data = runner(line)
    assert command == "error"
    assert properties == {
        "file": "src/train.py",
        "line": "12",
        "title": "FRZ101 batchnorm-stats-update",
    }
    assert data == "layer.{0-52}.bn: a fact\nmend()"


@pytest.mark.parametrize(
    ("severity", "command"), [("error", "error"), ("warning", "warning"), ("info", "notice")]
)
def test_severities(severity: str, command: str) -> None:
    assert runner(commands([seen(severity=severity)], "a.py", 1))[0] == command


def test_nothing_found_says_nothing() -> None:
    assert commands([], "a.py", 1) == ""


def test_a_path_that_has_to_be_escaped() -> None:
    path = "C:\\work, 100%\\a.py"
    line = commands([seen()], path, 1)
    assert "file=C%3A\\work%2C 100%25\\a.py," in line
    assert runner(line)[1]["file"] == path


def test_the_worst_come_first_since_github_shows_ten() -> None:
    found = [seen("a", severity="info"), seen("b", severity="warning"), seen("c")]
    lines = commands(found, "a.py", 1).splitlines()
    assert [runner(line)[0] for line in lines] == ["error", "warning", "notice"]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text(min_size=1, max_size=30), st.text(max_size=30))
def test_whatever_the_names_each_finding_is_one_command(where: str, file: str, said: str) -> None:
    told = commands([seen(where, said)], file, 3)
    assert "\n" not in told
    assert "\r" not in told
    command, properties, data = runner(told)
    assert command == "error"
    if "%" not in file:  # the runner's own unescaping of %25 comes last
        assert properties["file"] == file
    assert data.split("\n")[1] == "mend()"
    assert "::" not in data


def test_a_name_of_ten_kilobytes_is_cut() -> None:
    assert len(commands([seen("x" * 10_000, "y" * 10_000)], "a.py", 1)) < 3000
