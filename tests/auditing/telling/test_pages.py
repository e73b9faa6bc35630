"""Pages of rules: their parts, their text on a terminal, and the documents made of them."""

from __future__ import annotations

import pytest

from frostline._results import WIDTH
from frostline.auditing.finding import SEVERITIES
from frostline.auditing.rule import Rule
from frostline.auditing.rules import BY_CODE
from frostline.auditing.telling import pages
from tests import rule_pages

CODES = sorted(BY_CODE)


@pytest.mark.parametrize("code", CODES)
def test_a_page_on_a_terminal(code: str) -> None:
    rule = BY_CODE[code]
    told = pages.text(rule)
    assert told.startswith(f"{code}  {rule.name}\n")
    lines = told.splitlines()
    # Code is not broken: its lines are as wide as they stand in the file.
    assert max((len(line) for line in lines if not line.startswith("    ")), default=0) <= WIDTH
    assert "```" not in told
    assert "``" not in told
    heads = [line for line in lines[2:] if line and not line.startswith(" ")]
    assert heads == list(pages.sections(rule.page))


@pytest.mark.parametrize("code", CODES)
def test_code_of_a_page_is_kept(code: str) -> None:
    rule = BY_CODE[code]
    told = pages.text(rule).splitlines()
    example = pages.sections(rule.page)["Example"].split("```python\n")[1].partition("```")[0]
    assert example.strip()
    for line in example.splitlines():
        assert not line or f"    {line}" in told


@pytest.mark.parametrize("code", CODES)
def test_one_line_and_severities(code: str) -> None:
    rule = BY_CODE[code]
    assert 10 < len(pages.summary(rule)) <= 300
    assert pages.summary(rule)[0].isupper()
    assert pages.severities(rule)
    assert set(pages.severities(rule)) <= set(SEVERITIES)


def test_all_rules_in_one_table() -> None:
    told = pages.table()
    assert max(map(len, told.splitlines())) <= WIDTH
    listed = [line.split()[0] for line in told.splitlines() if line.startswith("  FRZ")]
    assert listed == CODES
    assert "FRZ1 buffers and modes\n  FRZ100  unexplained-change  [error]\n" in told


def test_a_rule_in_preview_says_so() -> None:
    known = BY_CODE["FRZ101"]
    rule = Rule("FRZ101", known.name, known.check, status="preview")
    assert "preview since 0.1" in pages.text(rule)
    assert pages.to_dict(rule)["status"] == "preview"
    assert "preview" in rule_pages.page(rule)


def test_the_documents_are_fresh() -> None:
    assert rule_pages.stale() == [], "run: python -m tests.rule_pages"


def test_a_stale_document_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rule_pages.stale() == []
    monkeypatch.setattr(rule_pages, "FOLDER", rule_pages.FOLDER / "nosuch")
    assert len(rule_pages.stale()) == len(BY_CODE) + 1


def test_every_rule_has_a_document_and_stands_in_the_index() -> None:
    wanted = rule_pages.wanted()
    assert {path.stem for path in wanted} == {"index", *map(str.lower, BY_CODE)}
    index = wanted[rule_pages.FOLDER / "index.md"]
    for code, rule in BY_CODE.items():
        assert f"[{code}]({code.lower()}.md) | `{rule.name}`" in index
