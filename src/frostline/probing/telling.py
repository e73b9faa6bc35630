"""How a coupling reads at 80 columns: who couples, what follows, and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from textwrap import fill

from frostline._collapsing import groups
from frostline._results import WIDTH, elide, plural
from frostline.probing.result import LOSS, STATE, Coupler, Coupling

_HEAD = ("module", "class", "what", "effect", "joinable")
_MOST = (WIDTH, 24, 20, 8, 8)  # characters in a column
_ROWS = 20
_SEQUENCE_FIRST = ("MultiheadAttention", "LSTM", "GRU", "RNN")
_EXACT = 'fl.accumulate(model, compute_loss, microbatches, batchnorm="exact")'
_HOLD = "fl.freeze(model, fl.coupling(model, batch).names, params=False)"
_HOLD_ALL = "fl.freeze(model, params=False)"


def text(found: Coupling) -> str:
    """All of it."""
    blocks = [_head(found), _table(found.couplers), _verdict(found), *_remedies(found)]
    return "\n\n".join(filter(None, (*blocks, *map(_listed, _notes(found)))))


def _head(found: Coupling) -> str:
    several = len(found.names)
    verb = "couples" if several == 1 else "couple"
    count = f"{several:,} of {plural(found.modules, 'module')}" if several else "no module"
    return (
        f"Coupling  {elide(found.model, 30)}: {count} {verb if several else 'couples'} samples\n"
        f"          {found.samples} samples, run as {found.called}; everything was put back"
    )


# --- the table -------------------------------------------------------------------------------


def _table(couplers: Sequence[Coupler]) -> str:
    if not couplers:
        return ""
    rows = list(_rows(couplers))
    widths = [
        min(most, max(map(len, column)))
        for most, column in zip(_MOST, zip(_HEAD, *rows, strict=True), strict=True)
    ]
    widths[0] = min(widths[0], WIDTH - 2 - sum(width + 2 for width in widths[1:]))
    lines = [_line(row, widths) for row in (_HEAD, *rows[:_ROWS])]
    if len(rows) > _ROWS:
        lines.append(f"  and {len(rows) - _ROWS:,} lines more: see .couplers")
    return "\n".join(lines)


def _rows(couplers: Sequence[Coupler]) -> Iterator[tuple[str, ...]]:
    """Those that differ in a number of their name only are told together."""
    alike: dict[tuple[object, ...], list[Coupler]] = {}
    for coupler in couplers:
        key = coupler.kind, coupler.what, coupler.joinable
        alike.setdefault(key, []).append(coupler)
    for members in alike.values():
        effects = {member.name: member.effect for member in members}
        for pattern, names in groups(effects):
            count = f"{len(names):,} × " if len(names) > 1 else ""
            yield (
                pattern or "(the model)",
                count + members[0].kind,
                members[0].what,
                _largest(effects[name] for name in names),
                "yes" if members[0].joinable else "no",
            )


def _largest(effects: Iterable[float | None]) -> str:
    known = list(effects)
    finite = [effect for effect in known if effect is not None]
    return f"{max(finite):.2g}" if len(finite) == len(known) else "infinite"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [elide(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)]
    cells[3] = row[3].rjust(widths[3])
    return "  " + "  ".join(cells).rstrip()


# --- what follows ----------------------------------------------------------------------------


def _verdict(found: Coupling) -> str:
    if found.couplers:
        return "Gradient accumulation does not equal the big batch, in the modes as they are."
    if found.undecided:
        return "Not decided whether gradient accumulation equals the big batch."
    loss = "a loss that is a mean over samples" if found.reduction is None else "this loss"
    weighed = "" if found.reduction == "sum" else ", each microbatch weighted by its samples"
    return _filled(f"Gradient accumulation equals the big batch, with {loss}{weighed}.")


def _remedies(found: Coupling) -> Iterator[str]:
    if not found.couplers:
        return
    if found.exact:
        yield f"All of it goes through calls that can be joined:\n  {_EXACT}"
    advised: dict[str, list[str]] = {}
    for coupler in found.couplers:
        if not coupler.joinable:
            advised.setdefault(_advice(coupler), []).append(coupler.name or "the model")
    for advice, names in advised.items():
        yield _filled(f"{_some(names)}: {advice}.")
    if all(coupler.holdable for coupler in found.couplers):
        line = _HOLD if all(found.names) else _HOLD_ALL
        yield f"Or hold these norms, each sample is then normalised by itself:\n  {line}"


def _advice(coupler: Coupler) -> str:
    if coupler.name == LOSS:
        return (
            "the loss is no sum over samples. Either it compares them (contrastive losses), and "
            "needs them all at once. Or it is a mean over items of which some samples have more "
            "(tokens, labels that are not ignored, class weights); then give their number to "
            "fl.accumulate(..., items=...)"
        )
    if coupler.what == STATE:
        return (
            "uses what the forward before has written, so that a microbatch depends on those "
            "before it. Write that once a step, after the last microbatch"
        )
    if coupler.kind.startswith("scripted "):
        return "hides its calls; use it as it was before torch.jit.script"
    if coupler.kind in _SEQUENCE_FIRST:
        return (
            "takes samples for the steps of a sequence. Its inputs are [length, samples, ...] "
            "unless it is made with batch_first=True"
        )
    return (
        "mixes samples by operations that cannot be joined. Give it the whole batch at once; "
        "a batch norm can be joined if it calls torch.nn.functional.batch_norm"
    )


def _some(names: Sequence[str]) -> str:
    patterns = [pattern for pattern, _ in groups(names)]
    rest = len(patterns) - 3
    return ", ".join(patterns[:3]) + (f" and {rest:,} more" if rest > 0 else "")


def _notes(found: Coupling) -> Iterator[str]:
    yield from found.undecided
    if found.reduction == "sum":
        yield "the loss is a sum: let it be a mean for fl.accumulate"
    elif found.reduction == "unknown":
        yield "whether the loss is a mean or a sum over samples could not be told"
    if found.random:
        draw = "draws" if found.random == 1 else "draw"
        yield (
            f"{plural(found.random, 'module')} {draw} random numbers, other ones for microbatches "
            "than for the big batch: what equals it is the distribution"
        )


def _filled(words: str) -> str:
    return fill(words, WIDTH, break_on_hyphens=False, break_long_words=False)


def _listed(words: str) -> str:
    return _filled(f"note: {words}.")
