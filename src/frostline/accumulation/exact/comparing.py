"""Whether the microbatches make the same norm calls, in the same order."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from frostline.errors import AccumulationError
from frostline.lockstep.lockstep import Finished
from frostline.lockstep.norm_calls import NormCall
from frostline.lockstep.places import name_of


def waiting_calls(model: nn.Module, steps: Sequence[NormCall | Finished]) -> list[NormCall]:
    """The calls at which all microbatches wait; none if all have come to their end.

    Raises:
        AccumulationError: one of them does something else than the first.
    """
    for k, step in enumerate(steps):
        refuse_other(model, k, step, steps[0])
    return [step for step in steps if isinstance(step, NormCall)]


def refuse_other(
    model: nn.Module, number: int, step: NormCall | Finished, first: NormCall | Finished
) -> None:
    """Raise if a microbatch does something else than the first; show the difference."""
    if _kind(step) != _kind(first):
        raise AccumulationError(
            f"microbatch {number} {_told(model, step)} where microbatch 0 {_told(model, first)}; "
            "the big batch has one sequence of norm calls. Take the branch that differs out of "
            'the model, or pass batchnorm="plain"'
        )


def _kind(step: NormCall | Finished) -> tuple[object, ...]:
    if isinstance(step, Finished):
        return ()
    x = step.input
    return (
        id(step.running_mean), id(step.running_var), x.shape[1], x.dtype, x.device, step.eps,
        step.weight is None, step.bias is None, step.grad,
    )  # fmt: skip


def _told(model: nn.Module, step: NormCall | Finished) -> str:
    if isinstance(step, Finished):
        return "comes to its end"
    name = name_of(model, step.running_mean, step.weight) or "a norm"
    return f"calls {name} with an input {list(step.input.shape)} of {step.input.dtype}"
