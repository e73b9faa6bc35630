"""What every result has in common: it prints, it serialises, and it refuses to be a truth value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from textwrap import fill
from typing import Any, Literal

ChangeKind = Literal[
    "value",
    "cast",
    "dtype",
    "shape",
    "missing",
    "added",
    "replaced",
    "mode",
    "requires_grad",
]
Severity = Literal["drift", "report"]

WIDTH = 80


class Result:
    """Base of the objects that frostline returns.

    ``if result:`` would be true for every object and so for every bad news; hence the refusal.
    """

    def __bool__(self) -> bool:
        kind = type(self).__name__
        instead = "use .ok" if hasattr(type(self), "ok") else "print it"
        raise TypeError(f"a {kind} is not a truth value; {instead}")

    def _repr_html_(self) -> str:
        import html

        return f"<pre>{html.escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        raise NotImplementedError


@dataclass(frozen=True)
class Change:
    """One tensor or module of a frozen part that is not as it was sealed.

    Attributes:
        name: full name of the tensor or module, wrapper prefixes left out.
        kind: what differs.
        severity: ``"drift"`` raises; ``"report"`` (casts, moves, additions) is told only.
        step: optimizer step at which it was seen, None outside a guard.
        tier: which check saw it.
        cause: what did it, as far as there is evidence.
        culprit: ``file:line`` of the write, or None.
        max_abs: largest absolute difference of an element, None where no old copy is kept.
        changed_elements: how many elements differ, None where no old copy is kept.
        elements: how many elements the tensor has, None where nobody counted.
        since: the last step after which it was known to be unchanged, None outside a guard.
        mend: what to do about the cause, a line of code where there is one.
    """

    name: str
    kind: ChangeKind
    severity: Severity = "drift"
    step: int | None = None
    tier: str = "full check"
    cause: str = "unknown"
    culprit: str | None = None
    max_abs: float | None = None
    changed_elements: int | None = None
    elements: int | None = None
    since: int | None = None
    mend: str | None = None

    def __str__(self) -> str:
        parts = [f"{self.kind:<13}"]
        if self.changed_elements is not None:
            parts.append(f"{self.changed_elements} changed")
        if self.max_abs is not None:
            parts.append(f"by up to {self.max_abs:.3g}")
        if self.cause != "unknown":
            parts.append(self.cause)
        tail = elide("  ".join(parts), WIDTH - 26)
        width = min(44, WIDTH - 4 - len(tail))  # indented by two in an alarm
        return f"{elide(self.name, width):<{width}}  {tail}"

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return asdict(self)


def filled(words: str, first: int = 0, rest: int = 0) -> str:
    """``words`` in lines of at most 80 columns, none broken at a hyphen.

    Args:
        words: one paragraph.
        first: how far the first line is indented.
        rest: how far the others are.

    Example:
        >>> filled("a norm", first=4)
        '    a norm'
    """
    return fill(
        words, WIDTH,
        initial_indent=" " * first,
        subsequent_indent=" " * rest,
        break_on_hyphens=False,
    )  # fmt: skip


def labelled(label: str, words: str, width: int) -> str:
    """``words`` like that, in a column of their own beside a label of ``width`` columns.

    Example:
        >>> labelled("now", "a norm", 9)
        '  now    a norm'
    """
    return fill(
        words, WIDTH,
        initial_indent=f"  {label:<{width - 2}}",
        subsequent_indent=" " * width,
        break_on_hyphens=False,
    )  # fmt: skip


def elide(name: str, width: int) -> str:
    """``name`` in at most ``width`` characters, shortened in the middle and never at its end.

    Example:
        >>> elide("encoder.layers.23.self_attn.q_proj.weight", 24)
        'encoder…tn.q_proj.weight'
    """
    if len(name) <= width:
        return name
    tail = width * 2 // 3
    return name[: width - tail - 1] + "…" + name[-tail:]


def plural(count: int, noun: str) -> str:
    """``count`` with its noun: ``1 buffer``, ``2 buffers``.

    Example:
        >>> plural(1, "buffer"), plural(1234, "buffer")
        ('1 buffer', '1,234 buffers')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
