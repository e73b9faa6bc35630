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
        for parameter in group["params"]:
            key = id(parameter)
            if key in claim.tensors and key not in held:
                _add(found, optimizer, group, parameter)
    found.undecided.update(_through_shared_memory(optimizer, claim, everything))
    return found


def _add(found: Moving, optimizer: Optimizer, group: dict[str, object], parameter: Tensor) -> None:
    if parameter.requires_grad:
        found.undecided[id(parameter)] = "whether a gradient reaches it"
    elif isinstance(optimizer, LBFGS):
        found.undecided[id(parameter)] = "LBFGS writes to every parameter"
    elif parameter.grad is not None:
        moves = _moves(optimizer, group, parameter)
        if moves is None:
            found.undecided[id(parameter)] = f"what {type(optimizer).__name__} does with a gradient"
        elif moves:
            found.sure.add(id(parameter))


def _moves(optimizer: Optimizer, group: dict[str, object], parameter: Tensor) -> bool | None:
    """Whether a step changes a byte of a parameter with the gradient that it has."""
    gradient = parameter.grad
    if gradient is None or not has_bytes(parameter) or not has_bytes(gradient):
        return None
    stand_in = nn.Parameter(parameter.detach().clone(), requires_grad=False)
    stand_in.grad = gradient.detach().clone()
    try:
        with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            other = twin(optimizer, group, stand_in, ())
            if optimizer.state.get(parameter):
                other.state[stand_in] = copy.deepcopy(optimizer.state[parameter])
            # Below the hooks of optimizers: guards and schedulers would count this as a step.
            inspect.unwrap(type(other).step)(other)
    except Exception:  # whatever an optimizer of somebody else dislikes about the stand-in
        return None
    return not same_bits(stand_in, parameter)


def _through_shared_memory(
    optimizer: Optimizer, claim: Claim, everything: Places
) -> Iterator[tuple[int, str]]:
    """Frozen tensors whose bytes are those of a trainable parameter that is stepped."""
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = [
        entry
        for entry in everything.tensors
        if entry.tensor.requires_grad
        and id(entry.tensor) in stepped
        and id(entry.tensor) not in claim.tensors
    ]
    frozen = [entry for entry in claim.tensors.values() if not is_lazy(entry.tensor)]
    for one, other in sharing(frozen, trained):
        why = f"whether a gradient reaches {other.name}, which shares its memory"
        yield id(one.tensor), why
