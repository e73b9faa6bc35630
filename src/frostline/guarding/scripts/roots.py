"""The models that are alive in this process: modules that hang in no other module."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn

from frostline._names import named_modules


def outermost(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The roots above ``modules``, each once: what holds them and is held by no other module."""
    parents: dict[int, list[nn.Module]] = {}
    for parent in alive():
        for child in _children(parent):
            parents.setdefault(id(child), []).append(parent)
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting = list(modules)
    while waiting:
        here = waiting.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        above = parents.get(id(here), [])
        if not above:
            found[id(here)] = here
        waiting += above
    return list(found.values())


def alive() -> Iterator[nn.Module]:
    """Every module that the garbage collector knows."""
    for thing in gc.get_objects():
        # Not isinstance: that asks the object for its class, and lazy proxies then load things.
        if issubclass(type(thing), nn.Module):
            yield thing


def owners(tensors: Iterable[Tensor]) -> list[nn.Module]:
    """The modules that hold any of these parameters."""
    wanted = {id(tensor) for tensor in tensors}
    return [
        module
        for module in alive()
        if any(id(p) in wanted for p in (vars(module).get("_parameters") or {}).values())
    ]


def has_tensors(module: nn.Module) -> bool:
    """Whether there is anything to watch: losses and activations have nothing."""
    return next(chain(module.parameters(), module.buffers()), None) is not None


def title(model: nn.Module) -> str:
    """The class of what is inside of wrappers such as DDP or a compiled module."""
    return [type(module).__name__ for name, module in named_modules(model) if not name][-1]


def _children(module: nn.Module) -> list[Any]:
    # A module whose __init__ is still running has none yet; a scripted one has its own table.
    table = vars(module).get("_modules")
    return [child for child in table.values() if child is not None] if table is not None else []
