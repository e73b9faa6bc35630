"""What the next training step changes though it looks frozen, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from frostline._names import NamedTensor, Places
from frostline.behaviours import leaking as behaviours
from frostline.freezing.record import covers
from frostline.summaries.sharing import sharing
from frostline.summaries.tree import class_name

# What one does, and what several do.
_Verb = tuple[str, str]
_TRAINS = ("in training mode writes", "in training mode write")
_WOULD = (
    "unheld in eval mode: train() makes it write",
    "unheld in eval mode: train() makes them write",
)
_STALE = (
    "has an old gradient, with which the optimizer moves",
    "have an old gradient, with which the optimizer moves",
)
_SHARES = (
    "shares memory with something trainable:",
    "share memory with something trainable:",
)


@dataclass(frozen=True)
class Leak:
    """Tensors of one module that look frozen and change.

    Attributes:
        module: the one that holds them.
        names: their full names.
        tensors: their names within the module.
        verb: what the module does, for one and for several of them.
    """

    module: nn.Module
    names: tuple[str, ...]
    tensors: tuple[str, ...]
    verb: _Verb


def find(
    model: nn.Module,
    everything: Places,
    frozen: set[int],
    optimizer: Optimizer | None,
) -> list[Leak]:
    """All that will change though it looks frozen.

    Args:
        model: the root.
        everything: all that hangs in it.
        frozen: ids of the modules that look frozen.
        optimizer: the one that will step.
    """
    moved = _by_owner(stale(everything, optimizer), _STALE)
    shared = _by_owner(_sharing(everything, frozen), _SHARES)
    return [*_written(model), *moved, *shared]


def reasons(found: Iterable[Leak]) -> tuple[str, ...]:
    """Why, in words: equal modules counted."""
    counts = Counter((class_name(leak.module), leak.verb, leak.tensors) for leak in found)
    return tuple(
        f"{count:,} {kind} {verb[count > 1]} {_listed(tensors)}"
        for (kind, verb, tensors), count in counts.items()
    )


def _listed(tensors: tuple[str, ...]) -> str:
    rest = len(tensors) - 3
    return ", ".join(tensors[:3]) + (f" and {rest:,} more" if rest > 0 else "")


def _by_owner(entries: Iterable[NamedTensor], verb: _Verb) -> Iterator[Leak]:
    owners: dict[int, list[NamedTensor]] = {}
    for entry in entries:
        owners.setdefault(id(entry.owner), []).append(entry)
    for own in owners.values():
        yield Leak(own[0].owner, tuple(e.name for e in own), tuple(e.attribute for e in own), verb)


def _written(model: nn.Module) -> Iterator[Leak]:
    """By the forward itself, once the model is in training mode."""
    owners: dict[int, list[behaviours.Leak]] = {}
    for leak in behaviours.leaks(model, training=True):
        owners.setdefault(id(leak.module), []).append(leak)
    for own in owners.values():
        module = own[0].module
        names, tensors = zip(*((leak.name, leak.write.tensor) for leak in own), strict=True)
        yield Leak(module, names, tensors, _TRAINS if module.training else _WOULD)


def stale(everything: Places, optimizer: Optimizer | None) -> Iterator[NamedTensor]:
    """Parameters that an optimizer moves by a gradient from before; a hold takes it away."""
    groups = optimizer.param_groups if optimizer is not None else ()
    given = {id(p) for group in groups for p in group["params"]}
    for entry in _once(everything):
        moves = entry.kind == "parameter" and id(entry.tensor) in given
        held = covers(entry.owner, entry.attribute)
        if moves and not held and not entry.tensor.requires_grad and entry.tensor.grad is not None:
            yield entry


def _sharing(everything: Places, frozen: set[int]) -> Iterator[NamedTensor]:
    """Frozen tensors whose bytes are those of a trainable parameter, too."""
    entries = [entry for entry in _once(everything) if not is_lazy(entry.tensor)]
    trained = [e for e in entries if e.kind == "parameter" and e.tensor.requires_grad]
    still = [
        entry
        for entry in entries
        if (
            not entry.tensor.requires_grad
            if entry.kind == "parameter"
            else id(entry.owner) in frozen
        )
    ]
    found = {id(one.tensor): one for one, _ in sharing(still, trained)}
    yield from found.values()


def _once(everything: Places) -> Iterable[NamedTensor]:
    """Each tensor at the first of its places."""
    found: dict[int, NamedTensor] = {}
    for entry in everything.tensors:
        found.setdefault(id(entry.tensor), entry)
    return found.values()
