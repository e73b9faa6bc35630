"""How an explanation reads at 80 columns, and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from functools import partial

from frostline._collapsing import collapse
from frostline._results import WIDTH, elide, filled, labelled, plural
from frostline.behaviours.doing import Doing, Write
from frostline.explaining.accumulating import Accumulated
from frostline.explaining.explanation import Explanation
from frostline.explaining.grouping import Row

_LABEL = 24
_labelled = partial(labelled, width=_LABEL)
_LISTED = 3  # names in full; more are collapsed
_ROWS = 20  # norms with figures, those that accumulation changes most


def text(explanation: Explanation) -> str:
    """All of it."""
    blocks = [block(explanation, row) for row in explanation.rows]
    if explanation.microbatches is not None:
        blocks.append("\n".join(_accumulation(explanation)))
    return "\n\n".join([_head(explanation), *blocks, _end(explanation)])


def as_html(explanation: Explanation) -> str:
    """A heading, and a block for each row that opens and closes; what writes is open."""
    parts = [f"<pre>{html.escape(_head(explanation))}</pre>"]
    for row in explanation.rows:
        title, _, body = block(explanation, row).partition("\n")
        opened = " open" if row.leaks else ""
        parts.append(
            f"<details{opened}><summary><code>{html.escape(title)}</code></summary>"
            f"<pre>{html.escape(body)}</pre></details>"
        )
    tail = _accumulation(explanation) if explanation.microbatches is not None else []
    parts.append(f"<pre>{html.escape(chr(10).join([*tail, _end(explanation)]))}</pre>")
    return "".join(parts)


def _head(explanation: Explanation) -> str:
    told = sum(len(row.names) for row in explanation.rows)
    if not told:
        return filled(
            f"Explanation  {explanation.model}: none of {plural(explanation.modules, 'module')} "
            "does otherwise in training than in eval mode, draws random numbers or writes to itself"
        )
    lines = [
        f"Explanation  {elide(explanation.model, 30)}: {told:,} of "
        f"{plural(explanation.modules, 'module')}, in {plural(len(explanation.rows), 'group')}"
    ]
    if explanation.called is not None:
        lines.append(f"             run once as {explanation.called}; everything was put back")
    return "\n".join(lines)


def _end(explanation: Explanation) -> str:
    leaky = explanation.leaky
    if not explanation.looks_frozen:
        return filled(
            "Nothing looks frozen: no module has requires_grad=False in all of its parameters. To "
            'freeze a part: fl.freeze(model, "backbone")'
        )
    if not leaky:
        return filled("Nothing that looks frozen is written by a forward in these modes.")
    return filled(
        f"{plural(len(leaky), 'tensor')} look frozen and change with every forward in these modes, "
        f"the first: {leaky[0]}. To hold them: fl.freeze(model, fl.FLAGGED)"
    )


# --- one row ---------------------------------------------------------------------------------


def block(explanation: Explanation, row: Row) -> str:
    """A title and what is to be said of these modules."""
    return "\n".join([_title(row), *_doings(row), *_frozen(row), *_seen(explanation, row)])


def _title(row: Row) -> str:
    size = f"({row.sizes[0]})" if row.sizes[0] else ""
    kind = elide(f"{row.kind}{size}", 34)
    first = elide(row.names[0] or "(the model)", WIDTH - 2 - len(kind))
    others = row.names[1:]
    title = f"{first}  {kind}"
    if not others:
        return title
    more = f"and {len(others):,} like it: {_others(row)}"
    joined = f"{title}  {more}"
    if len(joined) <= WIDTH:
        return joined
    return f"{title}\n{filled(more, 4, 6)}"


def _others(row: Row) -> str:
    pairs = list(zip(row.names[1:], row.sizes[1:], strict=True))
    if len(pairs) <= _LISTED:
        return ", ".join(f"{name} ({size})" if size else name for name, size in pairs)
    patterns = collapse(name for name, _ in pairs)
    shown = [elide(pattern, 60) for pattern, _ in patterns[:_LISTED]]
    left = sum(count for _, count in patterns[_LISTED:])
    return ", ".join(shown) + (f", and {left:,} more" if left else "")


def _doings(row: Row) -> Iterator[str]:
    doing = row.behaviour
    mode, other = ("training", "eval") if doing.training else ("eval", "training")
    if doing.held:
        yield from _doing(f"now: {mode} mode, held", doing.now)
    elif doing.same_in_both:
        yield from _doing("in both modes", doing.now)
    else:
        yield from _doing(f"now: {mode} mode", doing.now)
        yield from _doing(
            f"in {other} mode", doing.in_eval if doing.training else doing.in_training
        )


def _doing(label: str, doing: Doing) -> Iterator[str]:
    yield _labelled(label, doing.words + (" and WRITES" if doing.writes else "; writes nothing"))
    if doing.symbols:
        yield filled(doing.symbols, 6, 10)
    width = max((len(write.tensor) for write in doing.writes), default=0)
    yield from (_write(write, width) for write in doing.writes)
    if doing.raises:
        yield filled(doing.raises, 6, 10)


def _write(write: Write, width: int) -> str:
    return filled(f"{write.tensor:<{width}} <- {write.formula}", 6, 10 + width)


def _frozen(row: Row) -> Iterator[str]:
    doing = row.behaviour
    if row.parameters:
        yield _labelled("requires_grad=False", _flag(row))
    if doing.same_in_both and not doing.now.writes and not doing.held:
        if doing.kind == "norm":
            yield _labelled("to hold", "nothing: it has no statistics, and the mode is the same")
        return
    yield _labelled("held by frostline", _held(row))


def _flag(row: Row) -> str:
    several = len(row.parameters)
    names = f"its {several} parameters" if several > 2 else " and ".join(row.parameters)
    differs = not row.behaviour.same_in_both or row.behaviour.now.writes
    stops = f"gradients of {names}" + (", none of the above" if differs else "")
    if row.trainable is False:
        return f"set: stops {stops}"
    some = "not set" if row.trainable else "set on some"
    return f"{some}; it would stop {stops}"


def _held(row: Row) -> str:
    doing = row.behaviour
    if doing.held:
        if doing.now.statistics == "batch":
            return 'yes (stats="batch"): it leaves its statistics alone'
        return "yes: train() is ignored, and so it stays as it is"
    if row.follows:
        return 'its parameters; its statistics move on purpose (stats="update")'
    if row.looks_frozen:
        return f"no  ->  {row.line}"
    return f"no, and it does not look frozen; to hold it: {row.line}"


def _seen(explanation: Explanation, row: Row) -> Iterator[str]:
    if explanation.observed is None:
        return
    seen = [explanation.observed[name] for name in row.names]
    calls = sorted({one.calls for one in seen})
    often = f"{calls[0]} to {calls[-1]} times" if len(calls) > 1 else _times(calls[0])
    surprises = explanation.surprises(row)
    if surprises:
        name, tensors = next(iter(surprises.items()))
        told = f"; {elide(name, 30)} wrote {', '.join(tensors)}, which is not said above"
    else:
        wrote = list(dict.fromkeys(tensor for one in seen for tensor in one.wrote))
        told = f"; wrote {', '.join(wrote)}" if wrote else "; wrote nothing"
    yield _labelled("in the run", f"ran {often}{told}")


def _times(calls: int) -> str:
    return {0: "not at all", 1: "once"}.get(calls, f"{calls:,} times")


# --- accumulation ----------------------------------------------------------------------------


def _accumulation(explanation: Explanation) -> Iterator[str]:
    count = explanation.microbatches
    yield f"Accumulation over {count:,} microbatch{'' if count == 1 else 'es'}"
    found = explanation.accumulated
    if not found:
        yield filled(
            "No norm writes running statistics in these modes: accumulation leaves none behind, "
            "and a microbatch is normalised as it would be in the big batch.",
            2, 2,
        )  # fmt: skip
        return
    for momentum in dict.fromkeys(entry.momentum for entry in found):
        yield filled(_horizon(momentum, count or 1), 2, 4)
    yield filled(
        "The running variance becomes too small, by about rho / n of it for n samples a "
        "microbatch; rho is how alike the values inside of one sample are. More steps do not "
        "mend it. The gradients are not those of the big batch either.",
        2, 4,
    )  # fmt: skip
    if explanation.called is not None:
        yield from _figures(found)


def _horizon(momentum: float | None, count: int) -> str:
    if momentum is None:
        return "momentum None: all batches count alike, so the mean forgets nothing."
    kept, all_kept = 1 - momentum, (1 - momentum) ** count
    return (
        f"momentum {momentum:g}: a step leaves {all_kept:.3g} of the old running mean, where one "
        f"big batch leaves {kept:.3g}; it looks back over {_steps(all_kept)} instead of "
        f"{_steps(kept)}."
    )


def _steps(kept: float) -> str:
    """The horizon 1 / (1 - kept) of an exponential average."""
    if kept == 1:
        return "all steps"
    steps = f"{1 / (1 - kept):.3g}"
    return f"{steps} step" if steps == "1" else f"{steps} steps"


def _figures(found: Sequence[Accumulated]) -> Iterator[str]:
    yield f"  {'running variance, of the big batch':<44}{'rho':>8}{'formula':>10}{'the run':>10}"
    far = sorted(found, key=lambda entry: -abs(1 - (entry.measured or 1)))[:_ROWS]
    yield from (_figure(entry) for entry in found if entry in far)
    if len(found) > _ROWS:
        yield f"  and {len(found) - _ROWS:,} that are nearer to 1: see .accumulated"
    errors = [entry.error for entry in found if entry.error is not None]
    if errors:
        yield filled(
            "The formula speaks of one layer; in the run the layers before it saw microbatches "
            "too, and the batch is one draw. The running means after the run are those of the "
            f"averages above to within {max(errors):.1g} standard deviations.",
            2, 4,
        )  # fmt: skip


def _figure(entry: Accumulated) -> str:
    name = f"  {elide(entry.name, 42):<44}"
    if entry.measured is None:
        return f"{name}{'it did not run once':>28}"
    alike = "-" if entry.rho is None else f"{entry.rho:.3f}"
    return f"{name}{alike:>8}{entry.predicted:>10.3f}{entry.measured:>10.3f}"
