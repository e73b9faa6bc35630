"""The memory of an optimizer's state for a model: what is there, and what the next step adds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import LBFGS, SGD, AdamW, Optimizer

from frostline._batches import tensors_in
from frostline._results import plural
from frostline.freezing.printing import human
from frostline.summaries.footprint import nbytes
from frostline.summaries.stepping import state_of_one


@dataclass(frozen=True)
class State:
    """An optimizer's state for a model.

    Attributes:
        bytes: after the next step; None if that cannot be said.
        how: ``"measured"``, ``"predicted"``, both, or ``"unknown"``.
        notes: what else is to be known.
    """

    bytes: int | None
    how: str
    notes: tuple[str, ...] = ()


def state_of(optimizer: Optimizer, model: nn.Module, moving: list[Tensor]) -> State:
    """What ``optimizer`` keeps for ``model`` after its next step.

    Args:
        optimizer: it is only read.
        model: whose parameters count.
        moving: the parameters that get a gradient.
    """
    mine = {id(p) for p in model.parameters()}
    given: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    held = [p for p in _with_shape(given) if id(p) in mine]
    notes = tuple(_notes(type(optimizer).__name__, given, mine, moving))
    there = [p for p in held if optimizer.state.get(p)]
    measured = nbytes(t for p in there for t in tensors_in(optimizer.state[p]))
    if isinstance(optimizer, LBFGS):
        return _lbfgs(optimizer, held, measured if there else None, notes)
    done, waiting = {id(p) for p in there}, {id(p) for p in moving}
    missing = [
        (group, p)
        for group in optimizer.param_groups
        for p in group["params"]
        if id(p) in waiting and id(p) not in done
    ]
    if not missing:
        return State(measured, "measured" if there else "predicted", notes)
    predicted = _predict(optimizer, missing, model)
    how = "measured and predicted" if there else "predicted"
    if predicted is None:
        name = type(optimizer).__name__
        why = f"{name} did not step on stand-ins, so what it will keep is unknown until its step"
        return State(None, "unknown", (*notes, why))
    return State(measured + predicted, how, notes)


def estimates(moving: list[Tensor]) -> dict[str, int | None]:
    """What usual optimizers would keep for these parameters."""
    if not moving:
        return {"AdamW": 0, "SGD with momentum": 0}
    candidates = {"AdamW": AdamW(moving), "SGD with momentum": SGD(moving, lr=1.0, momentum=0.9)}
    return {
        name: _predict(optimizer, [(optimizer.param_groups[0], p) for p in moving], nn.Module())
        for name, optimizer in candidates.items()
    }


def _with_shape(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p for p in parameters if not is_lazy(p)]


def _predict(
    optimizer: Optimizer, missing: Iterable[tuple[Mapping[str, Any], Tensor]], model: nn.Module
) -> int | None:
    """The state of these parameters, one of each kind tried and multiplied."""
    known = list(model.modules())
    answers: dict[tuple[Any, ...], int | None] = {}
    total = 0
    for group, p in missing:
        strides = p.stride() if p.layout is torch.strided else ()
        key = (id(group), type(p), p.dtype, p.shape, strides)
        if key not in answers:
            answers[key] = state_of_one(optimizer, group, p, known)
        one = answers[key]
        if one is None:
            return None
        total += one
    return total


def _lbfgs(optimizer: LBFGS, held: list[Tensor], now: int | None, notes: tuple[str, ...]) -> State:
    # It keeps a step and a change of gradient for each round of its history, and four vectors more.
    length = sum(p.numel() * p.element_size() for p in held)
    history: int = optimizer.param_groups[0]["history_size"]
    most = human((2 * history + 4) * length).strip()
    grows = f"LBFGS grows with its history of {history} steps, up to {most}B"
    return State(now, "unknown" if now is None else "measured", (*notes, grows))


def _notes(name: str, given: list[Tensor], mine: set[int], moving: list[Tensor]) -> Iterator[str]:
    others = sum(id(p) not in mine for p in given)
    if others == len(given):
        yield (
            f"this {name} holds no parameter of this model. Was the model copied or replaced after "
            "it was built? Build the optimizer from model.parameters() again"
        )
        return
    known = {id(p) for p in given}
    left_out = sum(id(p) not in known for p in moving)
    if left_out:
        yield f"{plural(left_out, 'trainable parameter')} in no group of this {name}"
    if others:
        yield f"{plural(others, 'parameter')} of other models in this {name}, not counted"
