"""The pages that show the results: docs/peers.md and, where it has the markers, README.md."""

from __future__ import annotations

from pathlib import Path

from tests.peers import results, tables

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs" / "peers.md", ROOT / "README.md"
START, END = "<!-- peers -->", "<!-- /peers -->"


def between(text: str, inner: str) -> str:
    """The text with `inner` between its markers; where it has none, as it is."""
    if not marked(text):
        return text
    before, _, rest = text.partition(START)
    after = rest.partition(END)[2]
    return f"{before}{START}\n{inner}\n{END}{after}"


def marked(text: str) -> bool:
    return END in text.partition(START)[2]


def wanted() -> dict[Path, str]:
    """What the pages have to be."""
    versions, found = results.read()
    inner = {PAGE: tables.page(versions, found), README: tables.short(found)}
    return {path: between(path.read_text(), text) for path, text in inner.items()}


def stale() -> list[str]:
    """Pages that do not show what is stored."""
    return [path.name for path, text in wanted().items() if path.read_text() != text]
