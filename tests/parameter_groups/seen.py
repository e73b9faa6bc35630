"""What groups say, per parameter: the view that tests compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

Groups = Iterable[Mapping[str, Any]]


def layout(groups: Groups) -> list[tuple[list[int], float, float]]:
    """Members by identity, learning rate and weight decay of each group."""
    return [([id(p) for p in g["params"]], g["lr"], g["weight_decay"]) for g in groups]


def members(model: nn.Module, groups: Groups) -> dict[str, list[str]]:
    """The parameters' names in each group."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {g["name"]: [names[id(p)] for p in g["params"]] for g in groups}


def rates(model: nn.Module, groups: Groups) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter; a parameter may stand in one group only."""
    names = {id(p): name for name, p in model.named_parameters()}
    found: dict[str, tuple[float, float]] = {}
    for group in groups:
        assert group["params"], f"{group['name']} is empty"
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in found, f"{name} stands in two groups"
            found[name] = group["lr"], group["weight_decay"]
    return found
