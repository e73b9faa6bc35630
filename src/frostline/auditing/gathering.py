"""The facts about every module, by one walk."""

from __future__ import annotations

from torch import nn

from frostline._names import Places, once
from frostline.auditing import modes
from frostline.auditing.claim import Claim
from frostline.auditing.subject import Facts
from frostline.behaviours import behaviour


def gather(
    model: nn.Module, everything: Places, claim: Claim, notes: list[str] | None = None
) -> list[Facts]:
    """Facts of each module at the first of its places, parents first.

    Args:
        model: the root.
        everything: all that hangs in it.
        claim: what is claimed to be frozen.
        notes: what else comes to light is added here.
    """
    places = once(everything.modules)
    modules = [module for _, module in places]
    trained, evaluated = (modes.after(model, training, modules) for training in (True, False))
    if notes is not None:
        notes += [each.raised for each in (trained, evaluated) if each.raised]
    parents = _parents(model, everything)
    found: dict[int, Facts] = {}
    for name, module in places:
        key = id(module)
        parent = found.get(parents[key]) if key in parents else None
        found[key] = Facts(
            name,
            module,
            parent,
            key in claim.modules,
            module.training,
            trained.of.get(key, module.training),
            evaluated.of.get(key, module.training),
            behaviour(module, parent.module if parent is not None else None),
        )
    return list(found.values())


def _parents(model: nn.Module, everything: Places) -> dict[int, int]:
    parents: dict[int, int] = {}
    for _, module in everything.modules:
        for child in module._modules.values():
            if child is not None and child is not model:
                parents.setdefault(id(child), id(module))
    return parents
