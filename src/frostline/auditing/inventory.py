"""What stands in a report beside the findings: counts, the norms, the map of the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from frostline._names import NamedTensor
from frostline.auditing.subject import Facts, Subject
from frostline.freezing.record import get
from frostline.summaries import optimizer_state
from frostline.summaries.tree import class_name

State = Literal["frozen", "trainable", "mixed", "none"]


@dataclass(frozen=True)
class Place:
    """A module on the map, with what is at or below it.

    Attributes:
        name: full name; empty for the model itself.
        type: name of its class.
        depth: how many names deep it is.
        parent: where its parent stands on the map, -1 for the model.
        parameters: elements of parameters at or below it; one that hangs at several places is
            counted at the first.
        bytes: memory of parameters and buffers at or below it.
        state: of the parameters at or below it; without any, whether the module is claimed frozen.
        held: whether a frozen part holds it.
        training: the mode that it is in.
        leaky: whether something frozen at or below it changes.
    """

    name: str
    type: str
    depth: int
    parent: int
    parameters: int
    bytes: int
    state: State
    held: bool
    training: bool
    leaky: bool


@dataclass(frozen=True)
class Inventory:
    """Attributes: counts by kind, rows about norms, and the map, as ``to_dict`` gives them."""

    counts: dict[str, Any]
    norms: tuple[dict[str, Any], ...]
    places: tuple[Place, ...]


def take(subject: Subject) -> Inventory:
    """Count and list what hangs in the model; nothing is run."""
    once = {id(e.tensor): e for e in reversed(subject.tensors) if not is_lazy(e.tensor)}
    own: dict[int, list[NamedTensor]] = {}
    for entry in once.values():
        own.setdefault(id(entry.owner), []).append(entry)
    return Inventory(_counts(subject, once.values()), _norms(subject), tuple(_map(subject, own)))


def _counts(subject: Subject, entries: Iterable[NamedTensor]) -> dict[str, Any]:
    parameters = [e.tensor for e in entries if e.kind == "parameter"]
    trainable = [p for p in parameters if p.requires_grad]
    optimizer = subject.optimizer
    kept = None
    if optimizer is not None:
        # A custom optimizer may draw random numbers.
        with torch.random.fork_rng(devices=[]):
            kept = optimizer_state.state_of(optimizer, subject.model, trainable).bytes
    return {
        "parameters": _size(parameters),
        "trainable": _size(trainable),
        "frozen": _size([p for p in parameters if not p.requires_grad]),
        "buffers": _size([e.tensor for e in entries if e.kind == "buffer"]),
        "gradient_bytes": _size(trainable)["bytes"],
        "optimizer": type(optimizer).__name__ if optimizer is not None else None,
        "optimizer_bytes": kept,
    }


def _size(tensors: list[Tensor]) -> dict[str, int]:
    return {
        "elements": sum(t.numel() for t in tensors),
        "bytes": sum(t.numel() * t.element_size() for t in tensors),
    }


def _norms(subject: Subject) -> tuple[dict[str, Any], ...]:
    """Norms that do the same, in one row."""
    rows: dict[tuple[Any, ...], list[str]] = {}
    for facts in subject.modules:
        known = facts.behaviour
        if known is not None and known.kind == "norm":
            writes = tuple(map(str, known.now.writes))
            key = (class_name(facts.module), known.now.words, writes, known.in_eval.words,
                   known.held, facts.frozen)  # fmt: skip
            rows.setdefault(key, []).append(facts.name)
    return tuple(
        {"names": names, "kind": kind, "now": now, "writes": list(writes), "in_eval": in_eval,
         "held": held, "frozen": frozen}
        for (kind, now, writes, in_eval, held, frozen), names in rows.items()
    )  # fmt: skip


def _map(subject: Subject, own: dict[int, list[NamedTensor]]) -> list[Place]:
    modules = subject.modules
    at = {id(facts.module): i for i, facts in enumerate(modules)}
    parents = [at[id(f.parent.module)] if f.parent is not None else -1 for f in modules]
    elements, size = [0] * len(modules), [0] * len(modules)
    flags: list[set[bool]] = [set() for _ in modules]
    leaky = [False] * len(modules)
    changed = subject.now.changed & subject.claim.tensors.keys()
    # Children come after their parents, so backwards each is complete when it is added.
    for i in reversed(range(len(modules))):
        for entry in own.get(id(modules[i].module), ()):
            tensor = entry.tensor
            size[i] += tensor.numel() * tensor.element_size()
            leaky[i] = leaky[i] or id(tensor) in changed
            if entry.kind == "parameter":
                elements[i] += tensor.numel()
                flags[i].add(tensor.requires_grad)
        above = parents[i]
        if above >= 0:
            elements[above] += elements[i]
            size[above] += size[i]
            flags[above] |= flags[i]
            leaky[above] = leaky[above] or leaky[i]
    return [
        Place(
            f.name, class_name(f.module), f.name.count(".") + 1 if f.name else 0, parents[i],
            elements[i], size[i], _state(flags[i], f), _is_held(f), f.training, leaky[i],
        )
        for i, f in enumerate(modules)
    ]  # fmt: skip


def _state(flags: set[bool], facts: Facts) -> State:
    if len(flags) == 2:
        return "mixed"
    if not flags:
        return "frozen" if facts.frozen else "none"
    return "trainable" if True in flags else "frozen"


def _is_held(facts: Facts) -> bool:
    return get(facts.module) is not None
