"""Score the causes on the corpus; `python tests/guarding/causes/cause_table.py` writes the page."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))

from frostline.guarding.causes.finding import KINDS
from tests.guarding.causes.cause_harness import MEMORIES, Answer, Memory

PAGE = Path(__file__).parents[3] / "docs" / "guarding" / "confusion.md"

Scored = Mapping[str, Mapping[Memory, list[Answer]]]

INTRO = """\
---
orphan: true
---
<!-- Written by `python tests/guarding/causes/cause_table.py`; do not edit. -->

# Whose doing it was: the score

A guard says why a tensor changed, from what it knows: how the bytes were written, what was kept of
the old values, and which calls were seen. Here {cases} changes, as users write them and with near
misses, are made to small models, and the causes that are named are compared with the true ones.
The same people wrote the rules and the changes, so on changes of other kinds expect it to be worse.
{held} of the changes were written when the rules were done; on their first run, {first}

* **right**: the true cause.
* **vague**: only how it was written ("in-place operation") or "unknown", and it could be more.
* **wrong**: anything else. A change counts as wrong when one of its tensors is.

Where two changes leave the same evidence, "unknown" is the right answer, and counts as such.

| old values | right | vague | wrong |
|---|---|---|---|
"""

NAMES: dict[Memory, str] = {
    "copies": "all were kept",
    "samples": "all of up to 32 elements, else 256",
    "nothing": "none were kept",
}


def verdict(answers: Iterable[Answer]) -> str:
    several = list(answers)
    if any(a.is_wrong for a in several):
        return "wrong"
    return "vague" if any(a.is_vague for a in several) else "right"


def scores(scored: Scored) -> dict[Memory, Counter[str]]:
    return {m: Counter(verdict(by[m]) for by in scored.values()) for m in MEMORIES}


def pairs(scored: Scored, memory: Memory) -> Counter[tuple[str, str]]:
    """True and named cause, each pair once a change."""
    return Counter(
        pair
        for by_memory in scored.values()
        for pair in {(a.expected, a.said) for a in by_memory[memory]}
    )


def page(scored: Scored, held: int, first: str) -> str:
    text = INTRO.format(cases=len(scored), held=held, first=first)
    for memory, counts in scores(scored).items():
        cells = " | ".join(str(counts[kind]) for kind in ("right", "vague", "wrong"))
        text += f"| {NAMES[memory]} | {cells} |\n"
    for memory in MEMORIES:
        text += f"\n## Old values: {NAMES[memory]}\n\n{_matrix(pairs(scored, memory))}"
    return text


def _matrix(counts: Counter[tuple[str, str]]) -> str:
    rows = "| true cause | named | changes |\n|---|---|---|\n"
    order = {kind: i for i, kind in enumerate(KINDS)}
    for (true, said), count in sorted(
        counts.items(), key=lambda item: (order[item[0][0]], item[0][0] != item[0][1], item[0][1])
    ):
        rows += f"| {true} | {'the same' if true == said else said} | {count} |\n"
    return rows


def main() -> None:
    from tests import _torchvision

    _torchvision.install()
    from tests.guarding.causes.cause_corpus import CASES, FIRST_RUN, HELD_OUT
    from tests.guarding.causes.cause_harness import answers, changed

    scored = {case.name: answers(case, *changed(case)) for case in [*CASES, *HELD_OUT]}
    PAGE.write_text(page(scored, len(HELD_OUT), FIRST_RUN))


if __name__ == "__main__":
    main()
