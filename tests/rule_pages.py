"""The rules of the audit as documents: docs/rules, one page a rule, from the docstring of its file.

python -m tests.rule_pages            # write the pages
python -m tests.rule_pages --check    # write nothing: are they what the rules say?
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from frostline.auditing.rule import Rule
from frostline.auditing.telling import pages

FOLDER = Path(__file__).parents[1] / "docs" / "rules"

HEAD = """\
# Rules of the audit

What [`fl.audit`](../audit.md) looks for. Every finding has the code of its rule; `frostline rule
FRZ101` prints the page on a terminal. Severities: an **error** is something frozen that will
change, or training that goes wrong; a **warning** is that it may; **info** is to be known. A rule
in preview is shown, and fails no run.
"""
COLUMNS = "| code | name | severity | finds |\n|---|---|---|---|"
TOCTREE = "```{toctree}\n:hidden:\n:maxdepth: 1\n:glob:\n\nfrz*\n```"


def page(rule: Rule) -> str:
    """The document of a rule: its docstring, and below the title what stands in the table."""
    title, _, body = rule.page.strip().partition("\n")
    facts = (
        f"*{', '.join(pages.severities(rule))}; {rule.family}; {rule.status} since {rule.since}*"
    )
    return f"{title}\n\n{facts}\n\n{body.strip()}\n\n[All rules](index.md)\n"


def index() -> str:
    """All rules, by family."""
    tables = [_table(title, rules) for title, rules in pages.by_family(pages.all_rules())]
    return "\n\n".join([HEAD.rstrip(), *tables, TOCTREE]) + "\n"


def _table(title: str, rules: list[Rule]) -> str:
    return "\n".join([f"## {title}\n", COLUMNS, *map(_row, rules)])


def _row(rule: Rule) -> str:
    severity = ", ".join(pages.severities(rule)) + (" (preview)" * (rule.status == "preview"))
    link = f"[{rule.code}]({rule.code.lower()}.md)"
    return f"| {link} | `{rule.name}` | {severity} | {pages.summary(rule).replace('|', '/')} |"


def wanted() -> dict[Path, str]:
    """Each document, and what is to stand in it."""
    documents = {FOLDER / f"{rule.code.lower()}.md": page(rule) for rule in pages.all_rules()}
    return {FOLDER / "index.md": index(), **documents}


def stale() -> list[str]:
    """Documents that are missing, that say something else, or that no rule has."""
    texts = wanted()
    wrong = [p.name for p, text in texts.items() if not p.exists() or p.read_text() != text]
    return wrong + [path.name for path in FOLDER.glob("*.md") if path not in texts]


def write() -> None:
    """Write all documents, and remove those of rules that are no more."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = wanted()
    for path in FOLDER.glob("*.md"):
        if path not in texts:
            path.unlink()
    for path, text in texts.items():
        path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="The rules of the audit as documents.")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    if not parser.parse_args().check:
        write()
    elif wrong := stale():
        sys.exit(f"stale: {', '.join(wrong)}; run python -m tests.rule_pages")


if __name__ == "__main__":
    main()
