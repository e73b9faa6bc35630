"""Equal modules in one row: what is told once, and of whom."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from frostline.behaviours import Behaviour, behaviour
from frostline.behaviours.leaking import follows_on_purpose
from frostline.behaviours.randomness import probability


@dataclass(frozen=True)
class Row:
    """Modules of one class that do the same.

    Attributes:
        names: their full names, in the order of the model; the root is ``""``.
        kind: name of their class.
        sizes: what sets each apart: its channels, its probability; empty where nothing does.
        behaviour: what each of them does.
        parameters: names of the parameters of its own.
        trainable: whether those require gradients: all, none, or some (None).
        looks_frozen: whether ``requires_grad`` says that they belong to a frozen part.
        follows: whether their statistics move on purpose, by ``stats="update"``.
        line: the line that would hold them, or empty.
    """

    names: tuple[str, ...]
    kind: str
    sizes: tuple[str, ...]
    behaviour: Behaviour
    parameters: tuple[str, ...]
    trainable: bool | None
    looks_frozen: bool
    follows: bool
    line: str

    @property
    def leaks(self) -> bool:
        """Whether they look frozen and will be written in the mode that they are in."""
        return self.looks_frozen and not self.follows and bool(self.behaviour.now.writes)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        b = self.behaviour
        modes = {"now": b.now, "in_training": b.in_training, "in_eval": b.in_eval}
        return {
            "names": list(self.names),
            "class": self.kind,
            "kind": b.kind,
            "mode": "training" if b.training else "eval",
            "held": b.held,
            "sure": b.sure,
            "looks_frozen": self.looks_frozen,
            "follows": self.follows,
            "leaks": self.leaks,
            "parameters": list(self.parameters),
            "trainable": self.trainable,
            "line": self.line,
            **{
                name: {
                    "words": doing.words,
                    "symbols": doing.symbols,
                    "statistics": doing.statistics,
                    "random": doing.random,
                    "raises": doing.raises,
                    "writes": [vars(write) for write in doing.writes],
                }
                for name, doing in modes.items()
            },
        }


def rows(modules: Iterable[tuple[str, nn.Module]], frozen: set[int]) -> list[Row]:
    """One row for all that do the same; what writes comes first, what never differs last.

    Args:
        modules: full names and modules, each once.
        frozen: ids of the modules that look frozen.
    """
    alike: dict[Hashable, tuple[Behaviour, list[tuple[str, nn.Module]]]] = {}
    for name, module in modules:
        doing = behaviour(module)
        if doing is not None:
            own = tuple(name for name, _ in module._parameters.items())  # scripted: no dict
            flags = (_trainable(module), id(module) in frozen, follows_on_purpose(module))
            key = (type(module), doing, own, flags)
            alike.setdefault(key, (doing, []))[1].append((name, module))
    found = [_row(doing, members, frozen) for doing, members in alike.values()]
    return sorted(found, key=_rank)


def _rank(row: Row) -> int:
    doing = row.behaviour
    writes = doing.in_training.writes or doing.in_eval.writes
    order = [row.leaks, bool(writes and not doing.held), doing.in_training.random, doing.held]
    return order.index(True) if True in order else len(order) + doing.same_in_both


def _row(doing: Behaviour, members: list[tuple[str, nn.Module]], frozen: set[int]) -> Row:
    first = members[0][1]
    looks_frozen = id(first) in frozen
    names = tuple(name for name, _ in members)
    return Row(
        names=names,
        kind=type(first).__name__,
        sizes=tuple(_size(module) if doing.sure else "" for _, module in members),
        behaviour=doing,
        parameters=tuple(n for n, p in first._parameters.items() if p is not None),
        trainable=_trainable(first),
        looks_frozen=looks_frozen,
        follows=follows_on_purpose(first),
        line=_line(doing, names, looks_frozen),
    )


def _trainable(module: nn.Module) -> bool | None:
    flags = {p.requires_grad for p in module._parameters.values() if p is not None}
    return flags.pop() if len(flags) == 1 else None


def _size(module: nn.Module) -> str:
    for name in ("num_features", "num_channels", "num_embeddings"):
        value = getattr(module, name, None)
        if isinstance(value, int):
            return str(value)
    chance = probability(module)
    return "" if chance is None else f"p={chance:.3g}"


def _line(doing: Behaviour, names: tuple[str, ...], looks_frozen: bool) -> str:
    """What to write so that these are held; empty where they are, or where nothing would be."""
    if doing.held or (doing.same_in_both and not doing.now.writes):
        return ""
    if looks_frozen:
        return "fl.freeze(model, fl.FLAGGED)"
    tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
    if tops == [""] or len(tops) > 3:
        return "fl.freeze(model)"
    chosen = f'"{tops[0]}"' if len(tops) == 1 else "[" + ", ".join(f'"{t}"' for t in tops) + "]"
    return f"fl.freeze(model, {chosen})"
