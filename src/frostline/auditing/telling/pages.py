"""The page of a rule, and the table of all rules, from the docstrings of their files."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from textwrap import fill, indent
from typing import Any

from frostline._results import WIDTH
from frostline.auditing.finding import SEVERITIES, Severity
from frostline.auditing.rule import FAMILIES, Rule
from frostline.auditing.rules import BY_CODE

_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^```[a-z]*\n?", re.MULTILINE)
_ITEM = re.compile(r"\n\s*\n|^(?=- )", re.MULTILINE)
_SENTENCE = re.compile(r"(?:`[^`]*`|[^`])+?(?=[.:](?:\s|$))")
_SEVERITY = re.compile(r'"(error|warning|info)"')
_HERE = "frostline.auditing."


def all_rules() -> list[Rule]:
    """Every rule, by code."""
    return [BY_CODE[code] for code in sorted(BY_CODE)]


def sections(page: str) -> dict[str, str]:
    r"""The text below each heading of the second level, by heading.

    Example:
        >>> sections("# n (FRZ999)\n\n## What it does\nFinds it.\n\n## Example\nx\n")
        {'What it does': 'Finds it.', 'Example': 'x'}
    """
    _, *parts = _SECTION.split(page)
    return {head: body.strip() for head, body in zip(parts[::2], parts[1::2], strict=True)}


def summary(rule: Rule) -> str:
    """What a rule does, in its first sentence, without the dot; in Markdown.

    Example:
        >>> summary(BY_CODE["FRZ100"])
        'Finds frozen tensors that a training step changes and that no other rule accounts for'
    """
    does = " ".join(sections(rule.page)["What it does"].split()).replace("``", "`")
    first = _SENTENCE.match(does)
    return first.group() if first else does


def severities(rule: Rule) -> list[Severity]:
    """Those that the code of its check names, and of what that calls; worst first.

    Example:
        >>> severities(BY_CODE["FRZ101"])
        ['error']
    """
    own = vars(sys.modules[rule.check.__module__]).values()
    ours = (f for f in own if inspect.isfunction(f) and f.__module__.startswith(_HERE))
    named = {word for function in ours for word in _SEVERITY.findall(inspect.getsource(function))}
    return [severity for severity in SEVERITIES if severity in named]


def to_dict(rule: Rule) -> dict[str, Any]:
    """Plain types only, for JSON."""
    return {
        "code": rule.code,
        "name": rule.name,
        "family": rule.family,
        "severities": severities(rule),
        "status": rule.status,
        "since": rule.since,
        "summary": summary(rule),
        "page": rule.page,
    }


def by_family(rules: Sequence[Rule]) -> list[tuple[str, list[Rule]]]:
    """The rules of each family that has some, under ``"FRZ1 buffers and modes"``."""
    found = [
        (f"FRZ{digit} {words}", [rule for rule in rules if rule.code[3] == digit])
        for digit, words in FAMILIES.items()
    ]
    return [(title, members) for title, members in found if members]


def text(rule: Rule) -> str:
    """The page for a terminal of 80 columns: prose is filled, code stays as it is."""
    head = f"{rule.code}  {rule.name}"
    status = f"{', '.join(severities(rule))}; {rule.family}; {rule.status} since {rule.since}"
    body = [f"{title}\n{_body(words)}" for title, words in sections(rule.page).items()]
    return "\n\n".join([f"{head}\n  {status}", *body])


def table() -> str:
    """All rules by family, for a terminal."""
    blocks = []
    for title, rules in by_family(all_rules()):
        rows = (f"{_row(rule)}\n{_filled(summary(rule), 10)}" for rule in rules)
        blocks.append("\n".join([title, *rows]))
    return "\n\n".join([*blocks, "To read a page: frostline rule FRZ101"])


def _row(rule: Rule) -> str:
    preview = "  (preview)" if rule.status == "preview" else ""
    return f"  {rule.code}  {rule.name}  [{', '.join(severities(rule))}]{preview}"


def _body(words: str) -> str:
    """The text of a section: every second piece between fences is code."""
    pieces = _FENCE.split(words)
    shown = [
        indent(piece.rstrip(), "    ") if index % 2 else _prose(piece)
        for index, piece in enumerate(pieces)
    ]
    return "\n\n".join(piece for piece in shown if piece.strip())


def _prose(words: str) -> str:
    """Paragraphs and items of lists, each filled."""
    items = [" ".join(item.split()) for item in _ITEM.split(words)]
    return "\n".join(_filled(item.replace("``", "`"), 2) for item in items if item)


def _filled(words: str, margin: int) -> str:
    rest = margin + 2 if words.startswith("- ") else margin
    return fill(
        words, WIDTH,
        initial_indent=" " * margin,
        subsequent_indent=" " * rest,
        break_on_hyphens=False,
    )  # fmt: skip
