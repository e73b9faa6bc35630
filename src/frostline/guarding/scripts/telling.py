"""What is said after a script: at 80 columns, what moved first, then what never moved."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from frostline._results import WIDTH, elide, plural
from frostline.freezing.printing import human
from frostline.guarding import telling
from frostline.guarding.report import Finding, GuardReport

if TYPE_CHECKING:
    from frostline.guarding.scripts.report import Model, ScriptReport

_MINOR = ("preflight", "identity")
_MOST = 8  # of each list; --json has all


def report(found: ScriptReport) -> str:
    """The whole report."""
    blocks = [_head(found)]
    for model in found.models:
        blocks.append("\n".join(_model(model)))
    if found.models and not any(model.report.frozen for model in found.models):
        blocks.append(_filled(_freeze_something(), "  "))
    blocks += _not_watched(found)
    if not found.models and not found.unwatched:
        blocks.append(_filled(_no_model(), "  "))
    return "\n\n".join(blocks)


def findings(found: ScriptReport) -> str:
    """What moved, and nothing else."""
    return "\n\n".join("\n".join(_moved(model)) for model in found.moved)


def verdict(found: ScriptReport) -> str:
    """One sentence for all models."""
    if found.moved:
        many = sum(len({c.name for c in model.report.drift}) for model in found.moved)
        of = sum(model.report.frozen for model in found.models)
        return f"{many} of {plural(of, 'frozen tensor')} moved"
    if found.unmatched or found.unwatched:
        return "not everything could be watched"
    if not found.models:
        return "no model was seen"
    if not any(model.report.frozen for model in found.models):
        return "nothing was frozen"
    return "nothing frozen moved"


def sentence(report: GuardReport) -> str:
    """What can be said of one model."""
    frozen = f"{plural(report.frozen, 'frozen tensor')} ({human(report.nbytes)}B)"
    steps = f"over {plural(report.steps, 'step')}" if not report.nothing_ran else _NO_STEP
    if report.drift:
        return f"{len({change.name for change in report.drift})} of {frozen} moved, {steps}"
    if not report.frozen:
        return f"nothing is frozen, {steps}"
    how = "none moved, every byte compared" if report.unchanged else "no change seen"
    if cast := {change.name for change in report.changes if change.kind == "cast"}:
        how = f"{len(cast)} of them cast, else no change seen"
    gone = f"; {report.let_go:,} let go on the way" if report.let_go else ""
    return f"{frozen}, {how}, {steps}{gone}"


_NO_STEP = "with no optimizer step seen"


def _head(found: ScriptReport) -> str:
    said = f": {verdict(found)}"
    script = elide(found.script, WIDTH - len("frostline guard ") - len(said))
    lines = [f"frostline guard {script}{said}"]
    if found.raised is not None:
        lines.append(
            f"  The script ended early, by {found.raised}; this is what was seen till then."
        )
    elif found.stopped_after is not None:
        lines.append(f"  Stopped after {plural(found.stopped_after, 'step')}, as asked.")
    elif found.exit:
        lines.append(f"  The script itself ended with exit code {found.exit}.")
    if found.only_called:
        lines.append(
            f"  {plural(found.only_called, 'more model')} only called, nothing moved there."
        )
    return "\n".join(lines)


def _model(model: Model) -> list[str]:
    report = model.report
    lines = _moved(model) if report.drift else [_filled(f"{model.name}: {sentence(report)}", "  ")]
    lines += _section("seen before the first step", _findings(report.preflight))
    lines += _section("never moved, though trainable", telling.idle(report.idle))
    lines += _section("notes", [*report.windows, *report.notes])
    if report.frozen and not report.nothing_ran:
        lines += ["", _filled(_looks(report), "    ")]
    return lines


def _moved(model: Model) -> list[str]:
    text = telling.alarm(model.report.drift, model.report, pinpointed=True)
    body = text.split("\n", 2)[2]
    lines = [_filled(f"{model.name}: {sentence(model.report)}", "  "), ""]
    lines += [f"{line}" for line in body.splitlines()]
    if not any(change.culprit for change in model.report.drift):
        lines += ["", "  To get the line that wrote: frostline guard --pinpoint ..."]
    return lines


def _freeze_something() -> str:
    return (
        "All parameters are trainable. Name what must not change: frostline guard --frozen NAME "
        "..., or freeze it in the script: fl.freeze(model, NAME)"
    )


def _no_model() -> str:
    return (
        "No module with parameters was called, and no optimizer of torch stepped, in this process. "
        "Processes that the script starts are not watched: start them with frostline guard "
        "instead, as torchrun -m frostline guard SCRIPT does."
    )


def _not_watched(found: ScriptReport) -> list[str]:
    lines = [_filled(f"{name}: not watched. {why}", "  ") for name, why in found.unwatched.items()]
    return lines + [_filled(why, "  ") for why in found.unmatched]


def _findings(entries: Sequence[Finding]) -> list[str]:
    return [f"{entry.name}: {entry.what}" for entry in entries]


def _looks(report: GuardReport) -> str:
    """How closely it was watched; the page tells what each way of looking sees."""
    ways = [f"{t.name} {plural(t.looks, 'time')}" for t in report.tiers if t.looks]
    return f"looked at: {', '.join(way for way in ways if not way.startswith(_MINOR))}"


def _section(title: str, entries: Iterable[str]) -> list[str]:
    lines = list(entries)
    if not lines:
        return []
    more = [f"and {len(lines) - _MOST:,} more: see --json"] if len(lines) > _MOST else []
    return ["", f"    {title}", *(_filled(line, "      ") for line in [*lines[:_MOST], *more])]


def _filled(text: str, indent: str) -> str:
    return fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_on_hyphens=False
    )
