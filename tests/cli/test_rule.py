"""`frostline rule`: the table, the pages, and what is refused."""

from __future__ import annotations

import json

import pytest

from frostline.auditing.rules import BY_CODE
from frostline.cli.main import run


def say(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = run(list(words))
    return code, *capsys.readouterr()


def test_all_rules_in_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = say(capsys, "rule")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  FRZ")] == sorted(
        BY_CODE
    )
    assert max(map(len, out.splitlines())) <= 80
    assert say(capsys, "rules") == (0, out, "")


@pytest.mark.parametrize("word", ["FRZ101", "frz101", "batchnorm-stats-update"])
def test_a_page(capsys: pytest.CaptureFixture[str], word: str) -> None:
    code, out, err = say(capsys, "rule", word)
    assert (code, err) == (0, "")
    assert out.startswith("FRZ101  batchnorm-stats-update\n")
    for section in ("What it does", "Why is this bad?", "Use instead", "References"):
        assert f"\n{section}\n" in out


def test_explain_answers_to_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    page = say(capsys, "rule", "FRZ101")
    assert say(capsys, "explain", "FRZ101") == page
    assert say(capsys, "explain", "FRZ101", "--json") == say(capsys, "rule", "FRZ101", "--json")
    code, _, err = say(capsys, "explain", "FRZ777")
    assert code == 2
    assert "no rule is called 'FRZ777'" in err


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads(say(capsys, "rule", "--json")[1])
    assert told["version"] == 1
    assert [one["code"] for one in told["rules"]] == sorted(BY_CODE)
    (one,) = (one for one in told["rules"] if one["code"] == "FRZ101")
    assert json.loads(say(capsys, "rule", "FRZ101", "--json")[1]) == {"version": 1, **one}
    assert one["page"].startswith("# batchnorm-stats-update (FRZ101)")
    assert one["severities"] == ["error"]


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("FRZ110x", "The nearest"),
        ("batchnorm", "'batchnorm-stats-update'"),
        ("FRZ1", "FRZ1 stands for"),
    ],
)
def test_an_unknown_rule_exits_2(capsys: pytest.CaptureFixture[str], word: str, says: str) -> None:
    code, out, err = say(capsys, "rule", word)
    assert (code, out) == (2, "")
    assert says in err
    assert "frostline rule" in err


def test_no_colour_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    assert "\x1b" not in say(capsys, "rule", "FRZ101")[1]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert say(capsys, "rule", "FRZ101")[1].startswith("\x1b[1mFRZ101")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in say(capsys, "rule", "FRZ101")[1]
