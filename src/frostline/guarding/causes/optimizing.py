"""Optimizers: what a step wrote, by a gradient, by momentum, or by weight decay alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import LBFGS, AdamW, Optimizer

from frostline._names import byte_range
from frostline.guarding.causes.evidence import StepEvidence, TensorEvidence, TensorStep
from frostline.guarding.causes.verdicts import Scene, Verdict

_SHOWN = ("lr", "momentum", "betas", "weight_decay")
_MEND = (
    "fl.freeze(model, {}, optimizer=optimizer) clears the gradient and the state; or build the "
    "optimizer from what is trainable"
)


def optimizer(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """A step of an optimizer that has this tensor in its groups."""
    if e.tensor is None:
        return None
    steps = [(s, of) for s in scene.window.steps if (of := _record(s, e)) is not None]
    if not steps:
        return _through_shared_memory(e, scene)
    moving = [(s, of) for s, of in steps if of.had_grad and of.zero_grad is not True]
    if moving:
        return _by_gradient(e, *moving[-1])
    still = [(s, of) for s, of in steps if of.had_grad or _decays_without(s.optimizer)]
    return _without_gradient(e, scene, still) if still else None


def _record(step: StepEvidence, e: TensorEvidence) -> TensorStep | None:
    """What the step had of the tensor, if it may have written to it."""
    assert e.tensor is not None  # noqa: S101
    of = step.of(e.tensor)
    if of is None or float(of.options.get("lr", 1.0)) == 0 or step.was_skipped:
        return None
    counts = _is_torchs(step.optimizer) and not of.options.get("fused")
    if counts and e.version_moved is False:
        return None  # its kernels move the version counter, and it stands still
    if not of.had_grad and e.tensor.requires_grad and e.tensor.grad is not None:
        return of._replace(had_grad=True)  # a closure computed it
    return of


def counted(e: TensorEvidence, scene: Scene) -> bool:
    """Whether a step moved the version counter, be it with the bytes that were there."""
    if e.tensor is None:
        return False
    records = [of for s in scene.window.steps if (of := s.of(e.tensor)) is not None]
    return any(of.had_grad and not of.options.get("fused") for of in records)


def _is_torchs(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith("torch.optim")


def _decays_without(optimizer: Optimizer) -> bool:
    """Whether it may write to what has no gradient: none of torch's does."""
    return not _is_torchs(optimizer)


def _by_gradient(e: TensorEvidence, step: StepEvidence, of: TensorStep) -> Verdict:
    assert e.tensor is not None  # noqa: S101
    why = "which had a gradient"
    if not (e.tensor.requires_grad or isinstance(step.optimizer, LBFGS)):
        why += " though it requires none: from before the freeze, or written by hand"
    return Verdict("optimizer", e.name, f"{_who(step, of)} stepped on {{}}, {why}", _MEND)


def _who(step: StepEvidence, of: TensorStep) -> str:
    options = ", ".join(
        f"{key} {_number(of.options[key])}" for key in _SHOWN if of.options.get(key)
    )
    return f"{type(step.optimizer).__name__}, group {of.group} ({options}),"


def _number(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "/".join(map(_number, value))
    return f"{float(value):g}" if isinstance(value, int | float | Tensor) else str(value)


def _without_gradient(
    e: TensorEvidence, scene: Scene, steps: list[tuple[StepEvidence, TensorStep]]
) -> Verdict | None:
    step, of = steps[-1]
    decay = float(of.options.get("weight_decay", 0.0) or 0.0)
    if decay and (_is_decay(e, scene, steps) or _only_decay_is_in(step.optimizer, e)):
        text = f"{_who(step, of)} decayed {{}}, whose gradient was zero or none"
        return Verdict("weight decay only", e.name, text, _MEND)
    if not of.had_grad:
        return None
    if _has_momentum(step.optimizer, e):
        also = " and weight decay" if decay else ""
        text = f"{_who(step, of)} stepped on {{}} with a zero gradient: its momentum{also} moved it"
        return Verdict("momentum only", e.name, text, _MEND)
    if decay and scene.pair(e) is None:
        text = f"{_who(step, of)} stepped on {{}} with a zero gradient: only weight decay moves it"
        return Verdict("weight decay only", e.name, text, _MEND)
    return None


def _factor(steps: list[tuple[StepEvidence, TensorStep]]) -> float:
    factor = 1.0
    for _, of in steps:
        factor *= 1 - float(of.options.get("lr", 0.0)) * float(of.options.get("weight_decay", 0.0))
    return factor


def _is_decay(
    e: TensorEvidence, scene: Scene, steps: list[tuple[StepEvidence, TensorStep]]
) -> bool:
    """Whether every element was multiplied by just what the decay multiplies by."""
    pair = scene.pair(e)
    if pair is None or not pair.old.is_floating_point():
        return False
    old, new = pair.wide
    rounding = 4 * len(steps) * torch.finfo(pair.new.dtype).eps
    return bool(((new - old * _factor(steps)).abs() <= rounding * old.abs() + 1e-38).all())


def _only_decay_is_in(optimizer: Optimizer, e: TensorEvidence) -> bool:
    """Whether its average of gradients goes with the values: decay was all that came in."""
    assert e.tensor is not None  # noqa: S101
    average = optimizer.state.get(e.tensor, {}).get("exp_avg")
    if not isinstance(average, Tensor) or isinstance(optimizer, AdamW) or e.tensor.numel() < 8:
        return False
    likeness = functional.cosine_similarity(
        average.detach().reshape(-1).double(), e.tensor.detach().reshape(-1).double(), dim=0
    )
    return bool(likeness > 0.99)


def _has_momentum(optimizer: Optimizer, e: TensorEvidence) -> bool:
    state: Mapping[str, Any] = optimizer.state.get(e.tensor, {}) if e.tensor is not None else {}
    kept = (state.get(key) for key in ("momentum_buffer", "exp_avg", "mu"))
    return any(isinstance(value, Tensor) and bool((value != 0).any()) for value in kept)


def _through_shared_memory(e: TensorEvidence, scene: Scene) -> Verdict | None:
    """A parameter that trains and lies over the same bytes."""
    span = byte_range(e.tensor) if e.tensor is not None else None
    if span is None:
        return None
    for step, number, member in _members(scene):
        other = byte_range(member)
        if other is None or member is e.tensor or other[0] != span[0]:
            continue
        if other[1] < span[2] and span[1] < other[2] and member.grad is not None:
            text = (
                f"{{}} shares its memory with a parameter in group {number} of "
                f"{type(step.optimizer).__name__}, which stepped on that"
            )
            return Verdict("optimizer", e.name, text, "give it memory of its own: .clone()")
    return None


def _members(scene: Scene) -> Iterator[tuple[StepEvidence, int, Tensor]]:
    last = {id(step.optimizer): step for step in scene.window.steps}
    for step in last.values():
        for number, group in enumerate(step.optimizer.param_groups):
            for member in group["params"]:
                yield step, number, member
