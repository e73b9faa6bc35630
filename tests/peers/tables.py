"""The results as Markdown: the tables of docs/peers.md, and the short one of README.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tests.freezing.kinds import KINDS
from tests.peers.matrix import ACTIONS, CHECKS, HOLDS, UNDOS, Outcomes, tried
from tests.peers.results import Results
from tests.peers.ways import WAYS

EXPERT_FILE = Path(__file__).with_name("expert.py")
OURS, EXPERT = "frostline", "expert"
NUMBERS = {way: number for number, way in enumerate(WAYS, 1)}


def page(versions: dict[str, str], results: Results) -> str:
    """What stands between the markers of docs/peers.md."""
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    parts = [
        f"Computed with {libraries}: {_cells()} cells for each way.",
        _legend(),
        "## By what happens\n\nThe number of kinds that hold, of those tried; ways by number.",
        _table("what happens", _action_rows(results)),
        _verdicts(results),
        "## By kind of module\n\nThe number of actions under which it holds, of those tried.",
        _table("kind", _kind_rows(results)),
        "## What the freeze itself does\n\nThe number of kinds. A dash: the way has no undo.",
        _table("", _check_rows(results)),
        _misses(results),
        "## The first tensor that is another\n\n" + _first_failures(results),
        f"## The expert\n\n```python\n{EXPERT_FILE.read_text()}```",
    ]
    return "\n\n".join(parts)


def short(results: Results) -> str:
    """What stands between the markers of README.md."""
    kinds, actions = len(KINDS), len(ACTIONS)
    says = (
        f"`make peers` freezes {kinds} kinds of module in {len(WAYS)} ways, does {actions} things "
        "to each and compares all bytes ([every cell](docs/peers.md)):"
    )
    head = ["", *WAYS]
    lines = [head, ["---"] * len(head), [f"holds, of {_cells()}", *map(str, _totals(results))]]
    return "\n".join([says, "", *map(_line, lines + _checks(results)), "", _difference(results)])


# --- rows --------------------------------------------------------------------------------------


def _table(first: str, rows: Iterable[list[str]]) -> str:
    head = [first, "of", *map(str, NUMBERS.values()), f"{NUMBERS[EXPERT]} and {NUMBERS[OURS]}"]
    return "\n".join(map(_line, [head, ["---"] * len(head), *rows]))


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _action_rows(results: Results) -> list[list[str]]:
    """A line for all actions that come to the same."""
    groups: dict[str, list[str]] = {}
    for action in ACTIONS:
        words = [{k: o.split()[0] for k, o in rows[action].items()} for rows in results.values()]
        groups.setdefault(repr(words), []).append(action)
    return [
        [_names(actions), *_counts({way: rows[actions[0]] for way, rows in results.items()})]
        for actions in groups.values()
    ]


def _names(actions: list[str]) -> str:
    """`three steps of SGD, Adam`, not the words anew each time."""
    start = "three steps of "
    said = [
        a.removeprefix(start) if a != actions[0] and start in actions[0] else a for a in actions
    ]
    return "; ".join(said).replace("_", r"\_")


def _kind_rows(results: Results) -> list[list[str]]:
    def of(kind: str, rows: dict[str, Outcomes]) -> Outcomes:
        return {action: rows[action][kind] for action in ACTIONS if kind in tried(action)}

    return [[kind, *_counts({w: of(kind, rows) for w, rows in results.items()})] for kind in KINDS]


def _check_rows(results: Results) -> list[list[str]]:
    return [
        [name, *_counts({w: rows[name] for w, rows in results.items() if name in rows})]
        for name in (*CHECKS, *UNDOS)
    ]


def _counts(outcomes: dict[str, Outcomes]) -> list[str]:
    """How many were tried, how many hold in each way, and where the last two differ."""
    of = str(len(outcomes[OURS]))
    return [of, *(_count(outcomes.get(way)) for way in WAYS), _equal(outcomes)]


def _count(outcomes: Outcomes | None) -> str:
    if outcomes is None:
        return "–"
    words = Counter(outcome.split()[0] for outcome in outcomes.values())
    return f"{words[HOLDS]}" + (f" +{words['missing']}" if words["missing"] else "")


def _equal(outcomes: dict[str, Outcomes]) -> str:
    if EXPERT not in outcomes:
        return "–"
    ours, expert = outcomes[OURS], outcomes[EXPERT]
    differ = sum((ours[name] == HOLDS) != (expert[name] == HOLDS) for name in ours)
    return f"{differ} differ" if differ else "same"


def _checks(results: Results) -> list[list[str]]:
    """The rows of the README: without how many were tried, and without the last column."""
    return [[f"{row[0]}, of {row[1]}", *row[2:-1]] for row in _check_rows(results)[:3]]


# --- sentences ---------------------------------------------------------------------------------


def _cells() -> int:
    return sum(len(tried(action)) for action in ACTIONS)


def _totals(results: Results) -> list[int]:
    return [sum(o == HOLDS for _, _, o in _all(rows)) for rows in results.values()]


def _all(rows: dict[str, Outcomes]) -> list[tuple[str, str, str]]:
    return [(action, kind, o) for action in ACTIONS for kind, o in rows[action].items()]


def _legend() -> str:
    return "\n".join(f"{NUMBERS[name]}. **{name}**: {way.what}" for name, way in WAYS.items())


def _verdicts(results: Results) -> str:
    totals = ", ".join(f"{w} {n}" for w, n in zip(WAYS, _totals(results), strict=True))
    return (
        "`+3`: in three kinds more nothing moved, but the way drops a tensor "
        f"(`num_batches_tracked`). {_raising(results)}\n\n"
        f"In all, of {_cells()}: {totals}. {_difference(results)}"
    )


def _raising(results: Results) -> str:
    found = [
        f"{action}, {way} ({n})"
        for way, rows in results.items()
        for action in ACTIONS
        if (n := sum(o.startswith("raises") for o in rows[action].values()))
    ]
    return f"The action raises, which is not to hold: {'; '.join(found) or 'nowhere'}."


def _difference(results: Results) -> str:
    """Where the expert and frostline part, and where frostline does not hold."""
    pairs = zip(_all(results[OURS]), _all(results[EXPERT]), strict=True)
    cells = [(kind, ours == HOLDS, expert == HOLDS) for (_, kind, ours), (_, _, expert) in pairs]
    same = sum(ours == expert for _, ours, expert in cells)
    more = _kinds([kind for kind, ours, expert in cells if ours > expert])
    less = _kinds([kind for kind, ours, expert in cells if ours < expert])
    return (
        f"The expert's class and frostline come to the same in {same} cells. "
        f"Only frostline holds: {more}. Only the expert holds: {less}."
    )


def _kinds(kinds: list[str]) -> str:
    return ", ".join(f"{kind} ({n})" for kind, n in Counter(kinds).items()) or "none"


def _misses(results: Results) -> str:
    """The kinds behind the numbers of the checks that are not all."""
    found = []
    for check in (*CHECKS, *UNDOS):
        for way, rows in results.items():
            kinds = [kind for kind, o in rows.get(check, {}).items() if o != HOLDS]
            if 0 < len(kinds) <= 4:
                found.append(f"- {check}, {way}: not {', '.join(kinds)}")
    return "\n".join(found)


def _first_failures(results: Results) -> str:
    lines = []
    for way, rows in results.items():
        failures = Counter(_failure(o) for _, _, o in _all(rows) if o != HOLDS)
        said = ", ".join(f"{what} {n}" for what, n in failures.most_common()) or "none"
        lines.append(f"- **{way}**: {said}")
    return "\n".join(lines)


def _failure(outcome: str) -> str:
    word, _, what = outcome.partition(" ")
    if word == "raises":
        return f"raises `{what}`"
    return f"`{what.rpartition('.')[2]}`" + (" missing" if word == "missing" else "")
