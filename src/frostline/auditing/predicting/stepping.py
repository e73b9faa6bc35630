"""The optimizer's step in a predicted run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer, Rprop

from frostline.auditing.predicting.effects import Effect
from frostline.auditing.predicting.ledger import Ledger
from frostline.auditing.predicting.reasons import in_words
from frostline.freezing import live_parts
from frostline.freezing.optimizers import refuse_lbfgs


def step(optimizer: Optimizer, ledger: Ledger, reached: frozenset[int]) -> None:
    """Let ``optimizer`` step; where it cannot without values, its parameters are undecided.

    No hook of the optimizer is called, since guards and schedulers would count a step that is none;
    what the hold does before every step is done.

    Raises:
        FreezeError: LBFGS over parameters that are held.
    """
    held = [p for part in live_parts.all_parts() for p in part.frozen_parameters()]
    for parameter in held:
        parameter.grad = None
    if isinstance(optimizer, LBFGS):
        refuse_lbfgs(optimizer, map(id, held))
        _search(optimizer, ledger, reached)
        return
    if isinstance(optimizer, Rprop) and optimizer.state:
        why = "Rprop stands still where the sign of a gradient turned"
        _undecided(optimizer, ledger, lambda p: p.grad is not None, why)
        return
    for group in optimizer.param_groups:
        if group.get("fused") and any(p.is_meta for p in group["params"]):
            group["fused"] = False  # refused on the meta device; it computes the same
    try:
        with torch.no_grad():
            _below_hooks(optimizer)(optimizer)
    except Exception as error:
        why = f"what {type(optimizer).__name__} does with it: {in_words(error)}"
        _undecided(optimizer, ledger, lambda p: p.grad is not None, why)


def _below_hooks(optimizer: Optimizer) -> Callable[[Optimizer], Any]:
    below: Callable[[Optimizer], Any] = inspect.unwrap(type(optimizer).step)
    return below


def _search(optimizer: LBFGS, ledger: Ledger, reached: frozenset[int]) -> None:
    """LBFGS asks for values at once; its first move is along the gradient."""
    moves = optimizer.param_groups[0]["lr"] != 0 and not optimizer.state
    for p in _parameters(optimizer):
        if id(p) in reached and moves:
            ledger.note(id(p), Effect("sure"), "LBFGS.step")
    why = "LBFGS writes to it, with or without a gradient"
    _undecided(optimizer, ledger, lambda p: not (id(p) in reached and moves), why)


def _undecided(
    optimizer: Optimizer, ledger: Ledger, which: Callable[[Tensor], bool], why: str
) -> None:
    for p in filter(which, _parameters(optimizer)):
        ledger.note(id(p), Effect("maybe", why), f"{type(optimizer).__name__}.step")


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    return (p for group in optimizer.param_groups for p in group["params"])


def kept_by(optimizer: Optimizer) -> Iterator[Tensor]:
    """The tensors in its state: averages of gradients, counters."""
    for held in optimizer.state.values():
        if isinstance(held, dict):
            yield from (value for value in _flat(held) if isinstance(value, Tensor))


def _flat(held: dict[str, Any]) -> Iterator[Any]:
    for value in held.values():
        yield from value if isinstance(value, list | tuple) else (value,)
