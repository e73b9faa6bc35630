"""Preflight: what will or may change a frozen tensor, seen before the first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from frostline._collapsing import collapse, groups
from frostline._names import NamedTensor, named_tensors, overlapping
from frostline._results import plural
from frostline.behaviours import Behaviour, behaviour
from frostline.freezing.record import is_held
from frostline.guarding.report import Finding
from frostline.guarding.target import Target, Watched, name_in

_HOLD = "fl.freeze(model, ...) holds it"
_CLEAR = "Clear it: p.grad = None, or hold the part with fl.freeze"


def of_models(target: Target) -> list[Finding]:
    """What modules and memory tell: norms in training mode, modules that write to themselves."""
    owners = {id(p.owner): (p.name.rpartition(".")[0], p.owner) for p in _places(target)}
    free = [(name, module) for name, module in owners.values() if not is_held(module)]
    watched = {(id(p.owner), p.attribute) for p in _places(target)}
    writing = _writing(free, watched)
    return [
        *_training_norms(writing),
        *_self_writing(writing),
        *_stale_gradients(target),
        *_shared_memory(target),
    ]


def of_optimizer(target: Target, optimizer: Optimizer) -> list[Finding]:
    """What its groups tell: a frozen parameter that has a gradient, momentum, or needs neither."""
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    kind = type(optimizer).__name__
    inside = [w for w in target.tensors if id(w.tensor) in group_of]
    moved = [w for w in inside if isinstance(optimizer, LBFGS) or w.tensor.grad is not None]
    return [
        Finding(
            pattern,
            f"is in a group of {kind} and "
            + ("LBFGS writes to all it was given" if isinstance(optimizer, LBFGS) else "has .grad")
            + f", so the step will write to it{_options(group_of[id(names[0].tensor)])}",
            "Build the optimizer from what is trainable, or hold the part with fl.freeze",
        )
        for pattern, names in _collapsed(moved)
    ]


def _options(group: dict[str, Any]) -> str:
    known = ("weight_decay", "momentum", "betas")
    said = [f"{key}={group[key]}" for key in known if group.get(key)]
    return f" ({', '.join(said)})" if said else ""


def _places(target: Target) -> Iterator[NamedTensor]:
    return (place for watched in target.tensors for place in watched.places)


def _training_norms(writing: list[tuple[str, Behaviour]]) -> list[Finding]:
    names = [name for name, doing in writing if doing.kind == "norm"]
    return [
        Finding(
            pattern,
            f"{plural(count, 'norm')} in training mode: every forward writes the running "
            "statistics, whatever requires_grad says",
            _HOLD,
        )
        for pattern, count in collapse(names)
    ]


def _self_writing(writing: list[tuple[str, Behaviour]]) -> list[Finding]:
    alike: dict[tuple[bool, str], list[str]] = {}
    for name, doing in writing:
        if doing.kind != "norm":
            when = "every mode" if doing.in_eval.writes else "training mode"
            alike.setdefault((doing.sure, when), []).append(name)
    return [
        Finding(pattern, f"{plural(count, 'module')} that {_writes(count, sure)} in {when}", _HOLD)
        for (sure, when), names in alike.items()
        for pattern, count in collapse(names)
    ]


def _writes(count: int, sure: bool) -> str:
    verb, whom = ("writes", "itself") if count == 1 else ("write", "themselves")
    return f"{verb} to {whom}" if sure else f"may write to {whom}, by the code,"


def _writing(
    free: list[tuple[str, nn.Module]], watched: set[tuple[int, str]]
) -> list[tuple[str, Behaviour]]:
    """Modules that write something that is watched, as they are now."""
    doings = [(name, module, behaviour(module)) for name, module in free]
    return [
        (name, doing)
        for name, module, doing in doings
        if doing is not None
        and any((id(module), write.tensor) in watched for write in doing.now.writes)
    ]


def _stale_gradients(target: Target) -> list[Finding]:
    stale = [w for w in target.tensors if isinstance(w.tensor, nn.Parameter) and _has_grad(w)]
    return [
        Finding(pattern, "is frozen and has a gradient from before; optimizers look at it", _CLEAR)
        for pattern, _ in _collapsed(stale)
    ]


def _has_grad(watched: Watched) -> bool:
    return watched.tensor.grad is not None and not watched.tensor.requires_grad


def _shared_memory(target: Target) -> list[Finding]:
    frozen = {w.name: w.tensor for w in target.tensors}
    inside = {id(tensor) for tensor in frozen.values()}
    free: dict[str, Tensor] = {
        name_in(target, model, entry.name): entry.tensor
        for model in target.models
        for entry in named_tensors(model)
        if id(entry.tensor) not in inside
    }
    return [
        Finding(
            name,
            f"shares bytes with {other}, which is not frozen: a step of that one changes it",
            "Give it memory of its own: .clone() when it is made",
        )
        for name, other in overlapping(frozen, free)
    ]


def _collapsed(several: Iterable[Watched]) -> list[tuple[str, list[Watched]]]:
    by_name = {w.name: w for w in several}
    return [(pattern, [by_name[n] for n in names]) for pattern, names in groups(by_name)]
