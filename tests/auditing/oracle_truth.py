"""What one real step does to a set-up: the truth that an audit is measured with.

Nothing here uses the audit: the step is taken on a model of its own, and bytes are compared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import frostline as fl
from frostline._names import NamedTensor, named_tensors
from frostline.errors import SelectionError
from frostline.selection import select
from tests.auditing.oracle import SetUp, take_step


@dataclass(eq=False)
class Truth:
    """What one real step did.

    Attributes:
        frozen: full names of what is claimed to be frozen.
        changed: those of them whose bytes are others afterwards.
        raised: the error that ended the step, in words.
        reached: full names of the parameters that got a gradient.
        counted: how often each norm counted, by the full name of its counter.
    """

    frozen: set[str]
    changed: set[str] = field(default_factory=set)
    raised: str = ""
    reached: set[str] = field(default_factory=set)
    counted: dict[str, int] = field(default_factory=dict)


def truth(setup: SetUp, *, train: bool = False) -> Truth:
    """Take the step on a model of its own, after `model.train()` where it is asked for."""
    built = setup.build()
    entries = named_tensors(built.model)
    frozen = frozen_tensors(built.model, built.frozen)
    found = Truth(set(frozen.values()))
    before = [e.tensor.detach().clone() for e in entries]
    handles = [
        p.register_post_accumulate_grad_hook(lambda p: reached.add(id(p)))
        for p in built.model.parameters()
        if p.requires_grad and p.is_leaf
    ]
    reached: set[int] = set()
    if train:
        built.model.train()
    torch.manual_seed(setup.seed)
    try:
        take_step(built.model, built.batch, built.loss, built.optimizer)
    except Exception as error:
        found.raised = f"{type(error).__name__}: {error}"
    for handle in handles:
        handle.remove()
    _compare(found, frozen, entries, before)
    found.reached = {e.name for e in entries if id(e.tensor) in reached}
    return found


def _compare(
    found: Truth, frozen: dict[int, str], entries: list[NamedTensor], before: list[Tensor]
) -> None:
    for entry, old in zip(entries, before, strict=True):
        new = _present(entry)
        if id(entry.tensor) in frozen and not same_bytes(old, new):
            found.changed.add(frozen[id(entry.tensor)])
        if entry.attribute == "num_batches_tracked":
            found.counted[entry.name] = int(new) - int(old)


def _present(entry: NamedTensor) -> Tensor:
    """What stands at its place now, below whatever is shadowed there."""
    owner = entry.owner
    stores = (owner._parameters, owner._buffers, vars(owner))
    return next(store[entry.attribute] for store in stores if entry.attribute in store)


def same_bytes(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    one, two = (t.detach().contiguous().flatten() for t in (a, b))
    return one.numel() == 0 or torch.equal(one.view(torch.uint8), two.view(torch.uint8))


def frozen_tensors(model: nn.Module, frozen: Any) -> dict[int, str]:
    """What is claimed, by the selector or else by flags and parts: ids, and the first names."""
    if frozen is not None:
        found = select(model, frozen).tensors
    else:
        members = {name for part in fl.parts(model) for name in part.tensors}
        everywhere = named_tensors(model)
        found = _flagged(model) + [e for e in everywhere if e.name in members]
    free = _left_free(model)
    return {id(e.tensor): e.name for e in reversed(found) if id(e.tensor) not in free}


def _flagged(model: nn.Module) -> list[NamedTensor]:
    try:
        return select(model, fl.FLAGGED).tensors
    except SelectionError:
        return []


def _left_free(model: nn.Module) -> set[int]:
    """Buffers in the modules of a part that are no members of it: they go on, on purpose."""
    return {
        id(e.tensor)
        for part in fl.parts(model)
        for e in named_tensors(model)
        if e.kind == "buffer"
        and any(e.owner is module for module in part.modules.values())
        and e.name not in part.tensors
    }
