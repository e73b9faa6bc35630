"""The figures of the oracle: `python -m tests.auditing.oracle_page [--check]`.

Asks the audit about all 300 set-ups (some minutes), keeps what came out in oracle_record.json, and
writes docs/audit-precision.md from it. With `--check` nothing is run: it fails if the page is not
what the record says.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

RECORD = Path(__file__).with_name("oracle_record.json")
PAGE = Path(__file__).parents[2] / "docs" / "audit-precision.md"
ENOUGH = 0.95

Row = dict[str, Any]

_HEAD = """\
# How right the audit is

Written by `python -m tests.auditing.oracle_page` from {count} set-ups, each drawn from its number:
a model, a freeze, an optimizer with a past or none, modes, and what people do around them.
`print(SetUp.of(7))` in `tests/auditing/oracle.py` shows one as code. The truth about each is one
real training step on a copy of its own, and a comparison of bytes: a set-up leaks if a byte of what
is claimed to be frozen changed. {leaks} of them leak.
"""

_PRECISION = """\
## By rule

Findings of measured audits on the same set-ups. A finding is right if what it says is true of the
set-up, which is decided without the code of the rule: the tensors that an error names changed in
the step; those that FRZ102 names changed after `model.train()`; whether a parameter is in no group,
two runs differ, or samples see each other is looked up or tried. A rule under {enough:.2f} stays in
preview: it is shown, and fails no run.

| rule | findings | right | precision | |
|---|---|---|---|---|
"""


def collect() -> list[Row]:
    """Run all set-ups."""
    from tests.auditing.oracle import SEEDS
    from tests.auditing.oracle_outcome import outcome

    rows = []
    for seed in SEEDS:
        rows.append(outcome(seed).to_dict())
        if not (seed + 1) % 20:
            print(f"{seed + 1} of {len(SEEDS)}", file=sys.stderr)  # noqa: T201
    return rows


def read() -> list[Row]:
    """The rows of the last run."""
    rows: list[Row] = json.loads(RECORD.read_text())
    return rows


def page(rows: list[Row]) -> str:
    """The page, from the rows."""
    leaks = sum(row["leaks"] for row in rows)
    return "\n".join(
        [
            _HEAD.format(count=len(rows), leaks=leaks),
            _measured(rows),
            _predicted(rows),
            _reading(rows),
            _PRECISION.format(enough=ENOUGH) + _rules(rows),
            _never(rows),
        ]
    )


def _measured(rows: list[Row]) -> str:
    counts = Counter((row["said"]["measured"] == "leak", row["leaks"]) for row in rows)
    right, missed, invented = counts[True, True], counts[False, True], counts[True, False]
    exact = sum(not row["wrong"]["measured"] for row in rows)
    return f"""\
## Measured, with a batch

| | |
|---|---|
| leaks said, of those that there are (recall) | {_share(right, right + missed)} |
| leaks that there are, of those said (precision) | {_share(right, right + invented)} |
| the same tensors, now and after `model.train()` | {_share(exact, len(rows))} |

{_exceptions(rows, "measured")}"""


def _predicted(rows: list[Row]) -> str:
    decided = sum(not row["undecided"]["predicted"] for row in rows)
    exact = sum(not row["wrong"]["predicted"] and not row["undecided"]["predicted"] for row in rows)
    wrong = sum(bool(row["wrong"]["predicted"]) for row in rows)
    return f"""\
## Predicted, with a batch of shapes alone

| | |
|---|---|
| every tensor decided | {_share(decided, len(rows))} |
| decided, and the same tensors as the real step | {_share(exact, len(rows))} |
| wrong about a tensor | {_share(wrong, len(rows))} |

{_exceptions(rows, "predicted")}"""


def _reading(rows: list[Row]) -> str:
    counts = Counter((row["said"]["read"], row["leaks"]) for row in rows)
    table = "\n".join(
        f"| {said} | {counts[key, True]} | {counts[key, False]} |"
        for said, key in (
            ("something will change", "leak"),
            ("something may change", "undecided"),
            ("nothing changes", "clean"),
        )
    )
    return f"""\
## Read, without a batch

Nothing is run, so whether a module is called, and whether a gradient is zero, is not known.

| it says | leaks | does not leak |
|---|---|---|
{table}

{_exceptions(rows, "read")}"""


def _exceptions(rows: list[Row], way: str) -> str:
    found = [row for row in rows if row["wrong"][way]]
    if not found:
        return "Exceptions: none.\n"
    told = "\n".join(f"- set-up {row['seed']}: {_named(row['wrong'][way])}" for row in found)
    return f"Exceptions, by set-up and tensor:\n\n{told}\n"


def _named(tensors: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in tensors[:3])
    return shown if len(tensors) <= 3 else f"{shown} and {len(tensors) - 3} more"


def precision(rows: list[Row]) -> dict[str, tuple[int, int]]:
    """By code: how many findings are right, and how many there are."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        for code, (right, fired) in row["findings"].items():
            old = found.get(code, (0, 0))
            found[code] = (old[0] + right, old[1] + fired)
    return dict(sorted(found.items()))


def _rules(rows: list[Row]) -> str:
    from frostline.auditing.rules import BY_CODE

    lines = []
    for code, (right, fired) in precision(rows).items():
        rule, share = BY_CODE[code], right / fired
        note = "preview" if rule.status == "preview" else ""
        lines.append(f"| {code} {rule.name} | {fired} | {right} | {share:.3f} | {note} |\n")
    return "".join(lines)


def _never(rows: list[Row]) -> str:
    from frostline.auditing.rules import BY_CODE

    fired = precision(rows)
    names = [f"{code} {rule.name}" for code, rule in BY_CODE.items() if code not in fired]
    said = ", ".join(sorted(names)) or "none"
    return (
        f"Never found in these set-ups: {said}. Their own cases are all that they are tried on.\n"
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({part / whole:.3f})" if whole else "")


def main() -> None:
    """Run and write, or check."""
    if "--check" in sys.argv:
        if PAGE.read_text() != page(read()):
            sys.exit(f"docs/{PAGE.name} is stale: run python -m tests.auditing.oracle_page")
        return
    import torch

    from tests import _torchvision

    _torchvision.install()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = collect()
    RECORD.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    PAGE.write_text(page(rows))


if __name__ == "__main__":
    main()
