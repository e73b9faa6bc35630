"""The page of `frostline guard`: what it says, that it loads nothing, and how it looks."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from frostline.reports.guard_page import page

CHROMIUM = shutil.which("chromium")
LONG = "base_model.model.vision_model.encoder.layers.23.self_attn.q_proj.base_layer.weight"


def change(name: str, **other: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "value",
        "severity": "drift",
        "step": 1,
        "tier": "pages",
        "cause": "bn ran forward in training mode",
        "culprit": None,
        "max_abs": 0.031,
        "changed_elements": 64,
        "elements": 64,
        "since": 0,
        "mend": 'fl.freeze(model, "bn")',
        **other,
    }


def model(**other: Any) -> dict[str, Any]:
    tier = {
        "name": "full check",
        "ran": True,
        "tensors": 3,
        "nbytes": 94_000_000,
        "looks": 1,
        "seconds": 0.03,
        "sees": "every byte",
        "blind": "what was changed and put back",
        "why_not": "",
    }
    return {
        "model": "Net",
        "ok": True,
        "target": "Net",
        "frozen": 3,
        "bytes": 94_000_000,
        "steps": 12,
        "nothing_ran": False,
        "unchanged": True,
        "coverage": 1,
        "changes": [],
        "preflight": [],
        "idle": [],
        "tiers": [tier, {**tier, "name": "content", "ran": False, "looks": 0, "why_not": "none"}],
        "windows": [],
        "notes": [],
        "seconds": {},
        **other,
    }


def result(*models: dict[str, Any], **other: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "ok": True,
        "script": "train.py",
        "arguments": ["--lr", "1"],
        "exit": 0,
        "raised": None,
        "stopped_after": None,
        "models": list(models),
        "only_called": 0,
        "unwatched": {},
        "unmatched": [],
        **other,
    }


FULL = result(
    model(
        changes=[
            change("bn.running_mean"),
            change("bn.running_var", max_abs="inf", step=9, since=3),
            change(LONG, culprit="train.py:33", changed_elements=None, max_abs=None, cause="SGD"),
            change("<b>&name</b>", severity="report", kind="cast"),
        ],
        preflight=[{"name": "bn", "what": "1 norm in training mode", "mend": "hold it"}],
        idle=[{"name": "head.bias", "reason": "no gradient"}],
        notes=["a <note>"],
    ),
    model(model="Clean"),
    ok=False,
)


def words(text: str) -> str:
    class Words(HTMLParser):
        said = ""
        inside = False

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.inside = tag == "style" or (self.inside and tag != "body")

        def handle_endtag(self, tag: str) -> None:
            self.inside = self.inside and tag != "style"

        def handle_data(self, data: str) -> None:
            self.said += "" if self.inside else f" {data}"

    parser = Words()
    parser.feed(text)
    return " ".join(parser.said.split())


@pytest.mark.parametrize(
    ("given", "title", "also"),
    [
        (FULL, "3 frozen tensors moved", "3 of 6 frozen tensors changed"),
        (result(model(changes=[change("a")], frozen=1)), "1 frozen tensor moved", "1 of 1 frozen"),
        (result(model()), "Nothing frozen moved", "Every byte is as it was."),
        (result(model(unchanged=False)), "Nothing frozen moved", "3 frozen tensors"),
        (result(model(frozen=0)), "Nothing was frozen", "Name what must not change"),
        (result(), "No model was seen", "Processes that it starts are not watched"),
        (result(unwatched={"L": "lazy"}), "Not everything could be watched", "L was not watched."),
        (
            result(model(), unmatched=["--frozen x"]),
            "Not everything could be watched",
            "--frozen x",
        ),
        (result(model(), raised="OSError", exit=1), "Nothing frozen moved", "early, by OSError"),
        (result(model(), exit=3), "Nothing frozen moved", "exit code 3"),
        (result(model(), stopped_after=1), "Nothing frozen moved", "after 1 step, as asked"),
        (result(model(nothing_ran=True, steps=0)), "Nothing frozen moved", "No optimizer step was"),
    ],
)
def test_the_verdict_stands_on_top_in_words(given: dict[str, Any], title: str, also: str) -> None:
    text = page(given)
    heading = re.search(r"<h1>(.*?)</h1>", text)
    assert heading is not None
    assert words(heading[1]) == title
    assert also in words(text)


def test_every_byte_is_only_said_where_it_was_checked() -> None:
    for given in (result(model(unchanged=False)), FULL["models"][0] and result(FULL["models"][0])):
        assert "Every byte is as it was" not in page(given)


def test_changes_have_all_of_their_cells() -> None:
    said = words(page(FULL))
    for cell in ("bn.running_mean 64 of 64 0.031 1", "bn.running_var 64 of 64 inf 4–9", LONG):
        assert cell in said
    assert "train.py:33" in said
    assert "--pinpoint" in said
    assert "head.bias" in said
    assert "no gradient" in said


def test_names_are_escaped_and_nothing_is_loaded() -> None:
    text = page(FULL)
    assert "<b>&name" not in text
    assert "&lt;b&gt;&amp;name&lt;/b&gt;" in text
    assert "a &lt;note&gt;" in text
    assert "default-src 'none'; style-src 'unsafe-inline'" in text
    assert not re.search(r"<(script|link|img|iframe)|https?:|url\(|@import", text)
    assert len(re.findall(r"<h1", text)) == 1
    assert all("scope=" in th for th in re.findall(r"<th\b[^>]*>", text))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield chromium
        chromium.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_in_a_browser(browser: Any, tmp_path: Path, scheme: str, width: int) -> None:
    path = tmp_path / "guard.html"
    path.write_text(page(FULL), encoding="utf-8")
    tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.as_uri())
    tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert (said, asked) == ([], [path.as_uri()])
    style = "getComputedStyle(document.body)"
    paper, ink = tab.evaluate(f"[{style}.backgroundColor, {style}.color]")
    assert (_light(paper) < 0.5, _light(ink) > 0.5) == (scheme == "dark", scheme == "dark")
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.evaluate(wide) <= 0
    tab.emulate_media(media="print")
    assert _light(tab.evaluate("getComputedStyle(document.body).backgroundColor")) == 1
    tab.close()


def _light(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765
