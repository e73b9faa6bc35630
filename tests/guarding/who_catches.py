"""Who catches which change to a model: two tables, computed; writes docs/guarding/who-catches.md.

    python tests/guarding/who_catches.py                     # the page
    python tests/guarding/who_catches.py --packages VENV     # what installed packages say, first

The rows are in who_catches_changes.py and who_catches_writes.py, the columns in
who_catches_columns.py and who_catches_packages.py. tests/guarding/test_who_catches.py fails when
the page is not what is computed.
"""

from __future__ import annotations

import argparse
import sys
from html import escape
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:  # run as a script
    sys.path.insert(0, str(ROOT))

from tests.guarding import who_catches_packages as packages  # noqa: E402
from tests.guarding.who_catches_changes import CHANGES, Change  # noqa: E402
from tests.guarding.who_catches_columns import (  # noqa: E402
    OWN,
    RIGHT,
    WORDS,
    cell,
    columns,
)
from tests.guarding.who_catches_writes import Line, lines  # noqa: E402

PAGE = ROOT / "docs" / "guarding" / "who-catches.md"

# Colours are laid thinly over the page, whatever its theme; the words say the same.
STYLE = """<style>
.who-catches { overflow-x: auto; margin-bottom: 1rem; }
.who-catches table { border-collapse: separate; border-spacing: 1px; font-size: .58rem; }
.who-catches th { font-weight: 600; text-align: left; padding: 2px 6px; vertical-align: bottom; }
.who-catches thead th.way { writing-mode: vertical-rl; rotate: 180deg; padding: 6px 2px; }
.who-catches tbody th { min-width: 7rem; font-weight: 400; padding: 1px 4px;
  vertical-align: middle; }
.who-catches td { min-width: 1.6rem; }
.who-catches td { text-align: center; padding: 3px 0; border-radius: 3px; line-height: 1.1; }
.who-catches td.right { background: rgba(34, 160, 90, .22); }
.who-catches td.wrong { background: rgba(220, 50, 60, .30); font-weight: 600; }
.who-catches td.none { opacity: .6; }
.who-catches .own { border-bottom: 3px solid rgba(34, 160, 90, .8); }
</style>"""

INTRODUCTION = """---
orphan: true
---
<!-- Written by `python tests/guarding/who_catches.py`; do not edit. -->

# Who catches what

Two tables, computed with torch {version}. A test computes them again and compares. Nothing in them
is rated by hand: each cell is one run on a small model.

## Changes, and ways of checking

Each row does one thing to a model. Each column looks at the model before and after, with the
default settings of what it uses. Green is right; red, in bold, is wrong.
"""

WRITES = """
## Ways to write, and the signs they leave

Is there a cheap sign that a tensor was written to? Each row is a way to write, or one that looks
like it. Green: the sign and the bytes agree. Red: the sign stays away although the bytes changed
(`MISS`), or shows up although they did not (`false alarm`).

- **version**: `_version` of the tensor that was there before moves. For a tensor that was made in
  inference mode, reading it raises.
- **address**: `data_ptr()` of the tensor that has the name now is another one.
- **dispatch**: a `TorchDispatchMode` sees an operator that declares a write to its storage. Not
  run on compiled code: with such a mode on, torch runs it without compiling.
- **bytes**: dtype, shape or bytes under the name are others. This is the truth of the row.
"""

SIGNS = ("version", "address", "dispatch")


def words(change: Change) -> dict[str, str]:
    """The cells of a row, by the name of the column."""
    computed = {name: cell(name, change) for name in columns()}
    stored = {name: cells[change.name] for name, cells in packages.columns().items()}
    others = {name: word for name, word in computed.items() if name not in OWN}
    return others | stored | {name: computed[name] for name in OWN}


def sign(shown: bool, changed: bool) -> str:
    """The word for one sign of a way to write."""
    if shown == changed:
        return "yes" if shown else "silent"
    return "false alarm" if shown else "MISS"


def td(word: str) -> str:
    if word.startswith("not "):
        return f'<td class="none">{word}</td>'
    return f'<td class="{"right" if word in RIGHT else "wrong"}">{word}</td>'


def th(name: str) -> str:
    own = " own" if name in OWN else ""
    return f'<th scope="col" class="way{own}">{escape(name)}</th>'


def table(label: str, head: str, rows: list[str]) -> str:
    """An HTML table without blank lines, which would end it in Markdown."""
    parts = ['<div class="who-catches">', f'<table aria-label="{label}">', f"<thead>{head}</thead>"]
    return "\n".join([*parts, "<tbody>", *rows, "</tbody>", "</table>", "</div>"])


def changes_table() -> str:
    rows = [(change, words(change)) for change in CHANGES]
    head = '<tr><th scope="col">change</th>' + "".join(map(th, rows[0][1])) + "</tr>"
    return table("changes, and who catches them", head, [_row(c.name, w) for c, w in rows])


def _row(name: str, cells: dict[str, str]) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(map(td, cells.values()))}</tr>'


def writes_table() -> str:
    heads = "".join(f'<th scope="col">{name}</th>' for name in (*SIGNS, "bytes"))
    head = f'<tr><th scope="col">way to write</th>{heads}</tr>'
    return table("ways to write, and their signs", head, [_line(line) for line in lines()])


def _line(line: Line) -> str:
    changed = line.signs.bytes
    shown = zip(line.signs[:3], ("raises", "", "not run"), strict=True)
    cells = "".join(td(word if seen is None else sign(seen, changed)) for seen, word in shown)
    name = f"<b>{escape(line.group)}</b>: {escape(', '.join(line.names))}"
    truth = "changed" if changed else "same"
    return f'<tr><th scope="row">{name}</th>{cells}<td>{truth}</td></tr>'


def notes() -> str:
    """What the words mean, and where the columns come from."""
    met = {word for change in CHANGES for word in words(change).values()}
    meanings = [f"- `{word}`: {meaning}" for word, meaning in WORDS.items() if word in met]
    tools = [
        f"- `{name}`: {said['package']} {said['version'] or 'could not be installed'}, "
        f"`{said['command']}`; seen when {said['a change is seen when']}"
        for name, said in packages.results().items()
    ]
    again = (
        "¹ Written again from the published description, in a few lines: Megatron-LM's check "
        "across replicas (parameters only, SHA-1 of them as float32), and TrainCheck's "
        "`tensor_hash`. `_version` is read from all parameters and buffers. `DebugMode` is "
        "`log_tensor_hashes()` with its default, a norm. Packages were run once, and what they "
        "said is kept with their versions:"
    )
    return "\n".join([*meanings, "", again, "", *tools])


def page() -> str:
    introduction = INTRODUCTION.format(version=torch.__version__.partition("+")[0])
    parts = [introduction, STYLE, "", changes_table(), "", notes(), WRITES, writes_table()]
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Who catches which change to a model.")
    parser.add_argument("--packages", type=Path, metavar="VENV")
    venv = parser.parse_args().packages
    if venv is not None:
        packages.run_all(venv)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page())


if __name__ == "__main__":
    main()
