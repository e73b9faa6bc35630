"""Parameters grouped by the place at which a finding about them stands, and words for them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import nn

from frostline._names import NamedTensor
from frostline.auditing.subject import Subject
from frostline.freezing.record import covers


def is_held(entry: NamedTensor) -> bool:
    """Whether a part keeps this parameter frozen; it clears its gradient before every step."""
    return covers(entry.owner, entry.attribute)


def by_place(
    subject: Subject, entries: Iterable[NamedTensor]
) -> Iterator[tuple[str, list[NamedTensor]]]:
    """Entries by the outermost frozen module around them, or by their owner where none is.

    One that is alone there stands at its own name.
    """
    groups: dict[int, list[NamedTensor]] = {}
    for entry in entries:
        top = subject.top(subject.by_module[id(entry.owner)])
        groups.setdefault(id(top.module), []).append(entry)
    for key, group in groups.items():
        yield subject.by_module[key].name if len(group) > 1 else group[0].name, group


def by_owner(entries: Iterable[NamedTensor]) -> Iterator[list[NamedTensor]]:
    """Entries by the module that holds them."""
    groups: dict[int, list[NamedTensor]] = {}
    for entry in entries:
        groups.setdefault(id(entry.owner), []).append(entry)
    yield from groups.values()


def common_place(names: Iterable[str]) -> str:
    """The innermost module around all of these names; a name that is alone stands for itself.

    Example:
        >>> common_place(["trunk.0.weight", "trunk.1.weight"]), common_place(["trunk", "trunk2"])
        ('trunk', '')
    """
    paths = [name.split(".") for name in names]
    shared = paths[0]
    for path in paths[1:]:
        same = (i for i, (a, b) in enumerate(zip(shared, path, strict=False)) if a != b)
        shared = shared[: next(same, min(len(shared), len(path)))]
    return ".".join(shared)


def names(entries: Iterable[NamedTensor]) -> tuple[str, ...]:
    """Their full names."""
    return tuple(entry.name for entry in entries)


def listed(words: Iterable[str], most: int = 3) -> str:
    """The first of these, and how many more there are.

    Example:
        >>> listed(["weight", "bias"]), listed("abcdef")
        ('weight, bias', 'a, b, c and 3 more')
    """
    given = list(words)
    rest = len(given) - most
    return ", ".join(given[:most]) + (f" and {rest:,} more" if rest > 0 else "")


def code_for(model: nn.Module, module: nn.Module) -> str:
    """The expression that gives ``module``, for code that knows ``model``.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 1))
        >>> code_for(net, net[0]), code_for(net, net)
        ("model.get_submodule('0')", 'model')
    """
    path = next(name for name, other in model.named_modules() if other is module)
    return f"model.get_submodule({path!r})" if path else "model"
