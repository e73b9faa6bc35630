"""`frostline demo` end to end: exit codes, JSON, the page, and the page in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from frostline.cli.main import run
from frostline.demo.page import page
from frostline.demo.settings import Settings
from frostline.demo.story import Story, tell_story

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def story() -> Story:
    return tell_story(Settings(seeds=1, epochs=1))


@pytest.fixture(scope="module")
def written(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page(story), encoding="utf-8")
    return path


@pytest.mark.slow
def test_two_runs_print_equal_json_and_equal_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for _ in range(2):
        assert run(["demo", "--json", "--seeds", "1", "--epochs", "1"]) == 0
        out, err = capsys.readouterr()
        assert json.loads(out)["version"] == 1
        assert err.count("\n") == 7
        found.append((out, Path("frostline-demo/report.html").read_bytes()))
    assert found[0] == found[1]
    assert [p.name for p in Path("frostline-demo").iterdir()] == ["report.html"]


def test_control_that_does_not_drift_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--seeds", "1", "--epochs", "1", "--momentum", "0"]
    assert run(["demo", *short, "--json", "--out", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["ok"] is False
    assert "Not as expected: control" in err
    assert "did not come out as the story says" in (tmp_path / "report.html").read_text()


def test_a_folder_that_cannot_be_written_exits_2_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert run(["demo", "--out", str(tmp_path / "file")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "cannot write to" in err
    assert "training" not in err
    assert "--out DIR" in err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("no_colour", [False, True])
def test_on_a_terminal_there_is_colour_unless_refused(tmp_path: Path, no_colour: bool) -> None:
    import pty

    own, other = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    if no_colour:
        environment["NO_COLOR"] = "1"
    command = [sys.executable, "-m", "frostline", "demo", "--seeds", "1", "--out", str(tmp_path)]
    command += ["--epochs", "1"]
    done = subprocess.run(
        command, stdout=other, stderr=subprocess.PIPE, text=True, env=environment, timeout=120
    )
    os.close(other)
    text = b"".join(_all(own)).decode()
    assert done.returncode == 0, done.stderr
    assert ("\x1b[" in text) is not no_colour
    assert "YOUR TURN" in text


def _all(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            block = os.read(descriptor, 65536)
        except OSError:  # The other end is closed: on Linux an error and not an empty read.
            return
        if not block:
            return
        yield block


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_page_is_small_and_loads_nothing(written: Path) -> None:
    text = written.read_text()
    assert 20_000 < len(text) < 1_500_000
    parsed = _Page(text)
    policy = next(a for a in parsed.all("meta") if "http-equiv" in a)["content"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert not parsed.all("script") + parsed.all("link") + parsed.all("img") + parsed.all("iframe")
    for tag, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_page_can_be_read_by_machines_that_read_aloud(written: Path) -> None:
    parsed = _Page(written.read_text())
    assert parsed.all("html") == [{"lang": "en"}]
    assert parsed.all("title")
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in parsed.all("svg"))
    assert len(parsed.all("svg")) == 4
    assert all("scope" in th for th in parsed.all("th"))
    assert len(parsed.all("h1")) == 1
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_page_holds_the_numbers_of_the_run(story: Story, written: Path) -> None:
    text = written.read_text()
    for way in ("flag", "freeze"):
        for column in story.hard.accuracy(way):
            assert f"<td>{column[0]:.1f}<small>" in text
    for entry in story.why.moved:
        assert f"<code>{entry.name}</code>" in text


def test_without_matplotlib_the_page_says_so(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = page(story)
    assert (
        text.count("pip install &#39;frostline[report]&#39;")
        + text.count("pip install 'frostline[report]'")
        == 2
    )
    assert 'aria-label="Accuracy of' not in text


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
@pytest.mark.parametrize("width", [1000, 380])
def test_in_a_browser(browser: Any, written: Path, scheme: str, width: int) -> None:
    tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(written.as_uri())
    assert said == []
    assert asked == [written.as_uri()]
    paper, ink, line = tab.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor,
                  getComputedStyle(document.body).color,
                  getComputedStyle(document.querySelector('figure > svg text')).fill]"""
    )
    dark = scheme == "dark"
    assert (_light(paper) < 0.5) is dark
    assert (_light(ink) > 0.5) is dark
    assert (_light(line) > 0.5) is dark
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert tab.evaluate(wide) <= 0
    tab.close()


def _light(colour: str) -> float:
    return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765
