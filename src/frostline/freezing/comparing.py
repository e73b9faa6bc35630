"""A part against its seal: every name looked up, every byte read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from weakref import ReferenceType

from torch import Tensor, nn

from frostline._names import NamedTensor, named_modules, named_tensors
from frostline._results import Change
from frostline.freezing import sealing
from frostline.freezing.record import get

if TYPE_CHECKING:
    from frostline.freezing.part import Terms


def changes(
    model: nn.Module,
    terms: Terms,
    seal: sealing.Seal,
    objects: Mapping[str, ReferenceType[Tensor]],
) -> list[Change]:
    """Everything that is not as it was sealed."""
    live = {entry.name: entry for entry in named_tensors(model)}
    return [
        *_content(live, terms, seal, objects),
        *_structure(model, live, terms),
    ]


def structure(model: nn.Module, terms: Terms) -> list[Change]:
    """Flags, modes and additions; no tensor is read."""
    return _structure(model, {entry.name: entry for entry in named_tensors(model)}, terms)


def _structure(model: nn.Module, live: Mapping[str, NamedTensor], terms: Terms) -> list[Change]:
    return [*_flags(live, terms), *_modes(model, terms), *_added(model, live, terms)]


def _content(
    live: Mapping[str, NamedTensor],
    terms: Terms,
    seal: sealing.Seal,
    objects: Mapping[str, ReferenceType[Tensor]],
) -> Iterator[Change]:
    for name in terms.tensors:
        entry = live.get(name)
        if entry is None:
            yield Change(name, "missing")
        elif name not in seal.tensors:
            yield Change(name, "added", "report", cause="not there when the part was sealed")
        elif (change := sealing.compare(seal, name, entry.tensor)) is not None:
            yield change
        elif name in objects and objects[name]() is not entry.tensor:
            yield Change(name, "replaced", "report", cause="another object, equal bytes")


def _flags(live: Mapping[str, NamedTensor], terms: Terms) -> Iterator[Change]:
    for name in terms.frozen:
        entry = live.get(name)
        if entry is not None and entry.tensor.requires_grad:
            yield Change(name, "requires_grad", cause="was switched on again")


def _modes(model: nn.Module, terms: Terms) -> Iterator[Change]:
    held = set(terms.held)
    for name, module in named_modules(model):
        if name not in held or not module.training:
            continue
        record = get(module)
        lost = record is None or not record.eval
        cause = "is not held: replaced after freezing" if lost else "its class was taken away"
        yield Change(name, "mode", cause=cause)


def _added(model: nn.Module, live: Mapping[str, NamedTensor], terms: Terms) -> Iterator[Change]:
    covered, known = set(terms.modules), {*terms.tensors, *terms.others}
    below = {id(m) for name, top in named_modules(model) if name in covered for m in top.modules()}
    for name, entry in live.items():
        # A plain attribute that appears is a cache of some forward, not a weight.
        if name not in known and entry.kind != "attribute" and id(entry.owner) in below:
            yield Change(name, "added", "report")
