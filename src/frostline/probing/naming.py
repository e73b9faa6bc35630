"""From tensors that mix samples to the modules that did it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from frostline._names import named_modules
from frostline.probing.probe import Found, Mixed
from frostline.probing.result import LOSS, STATE, Coupler


def couplers(
    model: nn.Module,
    found: Found,
    joined: Found,
    remembering: Iterable[Mixed],
    *,
    judged: bool,
) -> list[Coupler]:
    """One for each module that mixes samples, and one for a loss that does.

    Args:
        model: the root.
        found: by a probe of the model as it is.
        joined: by a probe in which batch norms are joined.
        remembering: where a forward shows what the one before left.
        judged: whether the total is a loss.
    """
    names = {id(module): name for name, module in named_modules(model)}
    still = {id(mixed.place.owner) for mixed in joined.mixed}
    mixers, keepers = _by_owner(found.mixed), _by_owner(remembering)
    listed = [
        _coupler(names, mixed, _what(names, mixed), joinable=owner not in still)
        for owner, mixed in mixers.items()
    ]
    listed += [
        _coupler(names, kept, STATE, joinable=_is_spectral(kept[0].place.owner))
        for owner, kept in keepers.items()
        if owner not in mixers
    ]
    if judged and found.total and all(coupler.name != LOSS for coupler in listed):
        effect, joinable = _finite(found.total), joined.total == 0
        listed.append(Coupler(LOSS, "function", "the total", (1,), effect, joinable, False))
    return listed


def _by_owner(found: Iterable[Mixed]) -> dict[int, list[Mixed]]:
    owners: dict[int, list[Mixed]] = {}
    for mixed in found:
        owners.setdefault(id(mixed.place.owner), []).append(mixed)
    return owners


def _is_spectral(module: nn.Module | None) -> bool:
    """Its power iteration is one that ``fl.accumulate`` makes once for all microbatches."""
    if module is None:
        return False
    hooks = module._forward_pre_hooks.values()
    return isinstance(module, _SpectralNorm) or any(isinstance(h, SpectralNorm) for h in hooks)


def _coupler(names: dict[int, str], found: list[Mixed], what: str, *, joinable: bool) -> Coupler:
    owner = found[0].place.owner
    return Coupler(
        name=LOSS if owner is None else names[id(owner)],
        kind="function" if owner is None else _class_name(owner),
        what=what,
        calls=tuple(sorted({mixed.place.number for mixed in found})),
        effect=_finite(max(mixed.effect for mixed in found)),
        joinable=joinable,
        holdable=isinstance(getattr(owner, "running_mean", None), Tensor)
        and not isinstance(owner, torch.jit.ScriptModule),
    )


def _what(names: dict[int, str], found: Iterable[Mixed]) -> str:
    """Its output; of what happens in its own code before, the first module that is reached."""
    inside = [mixed for mixed in found if mixed.place.site.side == "in"]
    if not inside:
        return "its output"
    return f"input of {names[id(inside[0].place.call)] or 'the model'}"


def _class_name(module: nn.Module) -> str:
    if isinstance(module, torch.jit.ScriptModule):
        return f"scripted {module.original_name}"
    return type(module).__name__


def _finite(effect: float) -> float | None:
    return effect if math.isfinite(effect) else None
