"""How a part and an alarm read at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.parameter import UninitializedParameter

from frostline._names import named_tensors
from frostline._results import WIDTH, Change, elide, plural
from frostline.freezing.ignored import IgnoredCall
from frostline.freezing.sealing import Seal

if TYPE_CHECKING:
    from frostline.freezing.part import Terms

_SHOWN = 20


def part(model: nn.Module, terms: Terms, seal: Seal | None, ignored: Sequence[IgnoredCall]) -> str:
    """The part as ``print`` shows it."""
    rows = [
        ("held", _held(model, terms)),
        ("trainable", _trainable(model)),
        ("sealed", _sealed(terms, seal)),
        ("switches", f"params={terms.params}, stats={terms.stats!r}, mode={terms.mode!r}"),
        *(("ignored", _ignored(call)) for call in ignored),
        *(("note", note) for note in terms.notes),
    ]
    head = f"FrozenPart  {elide(terms.text, 44)}  of {elide(type(model).__name__, 20)}"
    return "\n".join([head, *(_row(label, text) for label, text in rows)])


def _row(label: str, text: str) -> str:
    return fill(
        text,
        WIDTH,
        initial_indent=f"  {label:<10}  ",
        subsequent_indent=" " * 14,
        break_on_hyphens=False,
    )


def _held(model: nn.Module, terms: Terms) -> str:
    covered, frozen = set(terms.tensors), set(terms.frozen)
    unique = {id(e.tensor): e for e in named_tensors(model) if e.name in covered}.values()
    parameters = [e.tensor for e in unique if e.name in frozen]
    rest = len(unique) - len(parameters)
    count = human(sum(p.numel() for p in parameters)).strip()
    return (
        f"{plural(len(parameters), 'parameter')} ({count}), {plural(rest, 'buffer')}; "
        f"{plural(len(terms.held), 'module')} in eval mode of {len(terms.modules):,}"
    )


def _trainable(model: nn.Module) -> str:
    parameters = [p for p in model.parameters() if p.requires_grad]
    names = [
        name or "(root)" for name, m in model.named_children() if any(
            p.requires_grad for p in m.parameters()
        )
    ]  # fmt: skip
    if not parameters:
        return "nothing"
    where = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    made = [p for p in parameters if not isinstance(p, UninitializedParameter)]
    size = human(sum(p.numel() for p in made)).strip()
    return f"{plural(len(parameters), 'parameter')} ({size})" + (f" in {where}" if where else "")


def _sealed(terms: Terms, seal: Seal | None) -> str:
    if seal is None:
        return "no: call part.seal() when the weights are loaded"
    sealed = [seal.tensors[name] for name in terms.tensors if name in seal.tensors]
    size = sum(tensor.nbytes for tensor in sealed)
    return f"{plural(len(sealed), 'tensor')}, {human(size)}B"


def _ignored(call: IgnoredCall) -> str:
    times = "once" if call.count == 1 else f"{call.count:,} times"
    return f"{call.what} {times} by {plural(call.modules, 'module')}, first at {call.caller}"


def human(number: int) -> str:
    """A count with three digits and a decimal prefix.

    Example:
        >>> human(950), human(23_508_032), human(1_500)
        ('950 ', '23.5 M', '1.5 k')
    """
    value, prefix = float(number), ""
    for following in ("k", "M", "G", "T"):
        if value < 1000:
            break
        value, prefix = value / 1000, following
    digits = f"{value:.0f}" if not prefix or value >= 100 else f"{value:.1f}"
    return f"{digits} {prefix}"


def alarm(drift: Sequence[Change], total: int) -> str:
    """The message of :class:`frostline.errors.FrozenStateChanged`."""
    lines = [f"{len(drift)} of {plural(total, 'frozen tensor')} changed", ""]
    lines += [f"  {change}" for change in drift[:_SHOWN]]
    if len(drift) > _SHOWN:
        lines.append(f"  ... and {len(drift) - _SHOWN} more: see .changes")
    lines += ["", "  If you loaded or wrote these on purpose: part.seal()"]
    return "\n".join(lines)
