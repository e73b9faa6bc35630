"""Tables, JSON, charts and pages."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import jinja2
import pytest

from frostline.errors import FrostlineError
from frostline.reports import charts, page
from frostline.reports.machine import to_json
from frostline.reports.tables import table


def test_table_aligns_and_keeps_80_columns() -> None:
    assert (
        table(["a", "bb"], [["word", "1"], ["w", "100"]]) == "  a      bb\n  word    1\n  w     100"
    )
    assert len(table(["a", "b"], [["x" * 70, "1234"]]).splitlines()[1]) == 78
    with pytest.raises(ValueError, match="80 columns"):
        table(["a", "b"], [["x" * 70, "1234567"]])
    with pytest.raises(ValueError, match=r"longer|shorter|argument"):
        table(["a", "b"], [["x"]])


def test_json_round_trips_and_refuses_what_it_cannot_hold() -> None:
    value = {"version": 1, "x": 0.1 + 0.2, "name": "größe"}
    assert json.loads(to_json(value)) == value
    with pytest.raises(ValueError, match="version"):
        to_json({"x": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"version": 1, "x": float("nan")})


def _panels() -> list[charts.Panel]:
    return [
        charts.Panel(f"<{n}> & co", [charts.Band("band", [(1.0, 0.5, 2.0), (2.0, 1.0, 3.0)])])
        for n in range(4)
    ]


def test_charts_are_inline_svg_of_the_page() -> None:
    drawn = charts.panels("p", 'what "it" shows', _panels(), "x", "y")
    again = charts.panels("p", 'what "it" shows', _panels(), "x", "y")
    other = charts.bars("q", "bars", [("one", 1.5), ("two", -0.5)], "points")
    assert drawn == again
    for svg in (drawn, other):
        ET.fromstring(svg)
        assert svg.startswith("<svg viewBox=")
        assert "http" not in svg
        assert "<style" not in svg
        assert "<metadata" not in svg
        assert "var(--one)" in svg
        assert not re.search(r"#0[0-3a]0[0-3a]0[0-3]\b", svg)
    assert 'aria-label="what &quot;it&quot; shows"' in drawn
    ids = [re.findall(r'\bid="([^"]+)"', svg) for svg in (drawn, other)]
    assert not set(ids[0]) & set(ids[1])
    used = set(re.findall(r'href="#([^"]+)"', drawn) + re.findall(r"url\(#([^)]+)\)", drawn))
    assert used
    assert used <= set(ids[0])
    assert "+1.5" in other


def test_render_escapes_and_is_strict() -> None:
    with pytest.raises(jinja2.UndefinedError):
        page.render("demo.html", {})
    assert page.trusted("<b>") + "<i>" == "<b>&lt;i&gt;"


def test_prepare_and_write(tmp_path: Path) -> None:
    path = page.prepare(tmp_path / "new" / "deep", "report.html")
    page.write(path, '<meta name="generator" content="frostline">one')
    assert page.prepare(tmp_path / "new" / "deep", "report.html") == path
    page.write(path, "two")
    assert path.read_text() == "two"
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_a_strangers_page_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(FrostlineError, match="not written by frostline"):
        page.prepare(tmp_path, "report.html")
    assert (tmp_path / "report.html").read_text() == "mine"


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FrostlineError, match="cannot write to"):
            page.prepare(folder, "report.html")
