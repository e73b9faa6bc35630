"""Which frozen parameters an optimizer moves, as far as that can be read.

Optimizers look at ``.grad``, never at ``requires_grad``. A frozen parameter that still has a
gradient is stepped; whether that changes a byte of it (a rate of 0, a gradient of zeros, decay,
momentum) is found by letting a twin of the optimizer step a copy.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, Optimizer

from frostline._names import Places
from frostline._state import has_bytes, same_bits
from frostline.auditing.claim import Claim
from frostline.freezing.record import covers
from frostline.summaries.sharing import sharing
from frostline.summaries.stepping import twin


@dataclass(frozen=True)
class Moving:
    """Frozen tensors that an optimizer moves.

    Attributes:
        sure: ids of those that it moves.
        undecided: ids of those that it may move, each with what it depends on.
    """

    sure: set[int] = field(default_factory=set)
    undecided: dict[int, str] = field(default_factory=dict)


def moving(optimizer: Optimizer | None, claim: Claim, everything: Places) -> Moving:
    """What the next step of ``optimizer`` moves of what is claimed to be frozen; nothing is run."""
    found = Moving()
    if optimizer is None:
        return found
    held = {
        id(e.tensor)
        for e in everything.tensors
        if e.kind == "parameter" and covers(e.owner, e.attribute)
    }
    for group in optimizer.param_groups:
        mine = [p for p in group["params"] if id(p) in claim.tensors and id(p) not in held]
        _without_gradient(found, optimizer, mine)
        stale = [p for p in mine if not p.requires_grad and p.grad is not None]
        if stale and not isinstance(optimizer, LBFGS):
            _with_gradient(found, optimizer, group, stale)
    found.undecided.update(_through_shared_memory(optimizer, claim, everything))
    if not any(e.tensor.requires_grad for e in everything.tensors if e.kind == "parameter"):
        # Then backward() raises, unless something beside the model is trained with it.
        why = "whether the loop comes to a step: nothing in the model is trainable"
        return Moving(undecided={**found.undecided, **dict.fromkeys(found.sure, why)})
    return found


def _without_gradient(found: Moving, optimizer: Optimizer, parameters: list[Tensor]) -> None:
    for parameter in parameters:
        if parameter.requires_grad:
            found.undecided[id(parameter)] = "whether a gradient reaches it"
        elif isinstance(optimizer, LBFGS):
            found.undecided[id(parameter)] = "LBFGS writes to every parameter"


def _with_gradient(
    found: Moving, optimizer: Optimizer, group: dict[str, Any], stale: list[Tensor]
) -> None:
    after = _stepped(optimizer, group, stale)
    for i, parameter in enumerate(stale):
        if after is None:
            found.undecided[id(parameter)] = f"what {type(optimizer).__name__} does with a gradient"
        elif not same_bits(after[i], parameter):
            found.sure.add(id(parameter))


def _stepped(
    optimizer: Optimizer, group: dict[str, Any], stale: list[Tensor]
) -> list[nn.Parameter] | None:
    """Copies of parameters after a step with the gradients and the state that they have."""
    gradients = [p.grad for p in stale if p.grad is not None]
    if not all(map(has_bytes, [*stale, *gradients])):
        return None
    copies = [nn.Parameter(p.detach().clone(), requires_grad=False) for p in stale]
    for stand_in, gradient in zip(copies, gradients, strict=True):
        stand_in.grad = gradient.detach().clone()
    try:
        with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            other = twin(optimizer, group, copies, ())
            for stand_in, parameter in zip(copies, stale, strict=True):
                if optimizer.state.get(parameter):
                    other.state[stand_in] = copy.deepcopy(optimizer.state[parameter])
            # Below the hooks of optimizers: guards and schedulers would count this as a step.
            inspect.unwrap(type(other).step)(other)
    except Exception:  # whatever an optimizer of somebody else dislikes about a stand-in
        return None
    return copies


def _through_shared_memory(
    optimizer: Optimizer, claim: Claim, everything: Places
) -> Iterator[tuple[int, str]]:
    """Frozen tensors whose bytes are those of a trainable parameter that is stepped."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = [
        entry
        for entry in everything.tensors
        if entry.tensor.requires_grad and id(entry.tensor) in stepped
    ]
    own = {id(entry.tensor) for entry in trained}
    frozen = [
        entry
        for key, entry in claim.tensors.items()
        if key not in own and not is_lazy(entry.tensor)
    ]
    for one, other in sharing(frozen, trained):
        why = f"whether a gradient reaches {other.name}, which shares its memory"
        yield id(one.tensor), why
