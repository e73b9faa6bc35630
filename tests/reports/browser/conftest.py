"""A browser for all tests of a file, and a tab that remembers what the page asked and said."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


# Not for the session: Playwright runs once a process, and other files start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed: apt-get install chromium, as .ci/run does")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


class Tab:
    """A page that was opened from a file.

    Attributes:
        page: Playwright's.
        said: messages of the console, errors and dialogs.
        asked: addresses that were requested.
        address: of the file.
    """

    def __init__(self, context: Any, path: Path) -> None:
        self.page = context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.address = path.as_uri()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", self._dialog)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(self.address)

    def _dialog(self, dialog: Any) -> None:
        self.said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def count(self, selector: str) -> int:
        """How many elements are shown."""
        return self.page.locator(f"{selector} >> visible=true").count()

    def words(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    @property
    def too_wide(self) -> int:
        """Pixels by which the page is wider than the window."""
        page = "document.documentElement"
        return self.page.evaluate(f"{page}.scrollWidth - {page}.clientWidth")

    def is_quiet(self) -> bool:
        """Whether nothing but the file was requested and nothing was said."""
        return (self.said, self.asked) == ([], [self.address])


@pytest.fixture
def tab(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Tab]]:
    contexts = []

    def opened(text: str, *, width: int = 1200, **options: Any) -> Tab:
        path = tmp_path / f"page{len(contexts)}.html"
        path.write_text(text, encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        context.set_default_timeout(5000)
        contexts.append(context)
        return Tab(context, path)

    yield opened
    for context in contexts:
        context.close()
