"""Cases of FRZ206, rows-frozen-by-hook."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ206"})


def _net(hook: Callable[[Tensor], Any]) -> nn.Sequential:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 1))
    model[0].weight.register_hook(hook)
    return model


def _adamw(model: nn.Module, **options: Any) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), **options)


def _last_row() -> Tensor:
    mask = torch.zeros(8, 1)
    mask[7] = 1.0
    return mask


def _ranges(first: int, last: int) -> Callable[[Tensor], None]:
    """The hook of axolotl's `unfrozen_parameters`, with ranges."""

    def hook(gradient: Tensor) -> None:
        gradient[first:last].zero_()

    return hook


def bad_mask() -> Case:
    mask = _last_row()
    model = _net(lambda gradient: gradient * mask)
    return Case(model, optimizer=_adamw(model), codes=_ONLY)


def bad_ranges() -> Case:
    model = _net(_ranges(0, 7))
    return Case(model, optimizer=_adamw(model), codes=_ONLY)


def bad_rows_assigned() -> Case:
    def hook(gradient: Tensor, old: int = 7) -> Tensor:
        gradient = gradient.clone()
        gradient[:old] = 0
        return gradient

    model = _net(functools.partial(hook, old=6))
    return Case(model, optimizer=_adamw(model), codes=_ONLY)


def bad_momentum_that_lived() -> Case:
    model = _net(_ranges(0, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.arange(8)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    return Case(model, optimizer=optimizer, codes=_ONLY)


def good_scales_only() -> Case:
    scale = torch.full((8, 1), 0.1)
    model = _net(lambda gradient: gradient * scale)
    return Case(model, optimizer=_adamw(model))


def good_cleans_only() -> Case:
    def hook(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[torch.isnan(gradient)] = 0
        return gradient

    model = _net(hook)
    return Case(model, optimizer=_adamw(model))


def good_looks_only() -> Case:
    seen: list[float] = []
    model = _net(lambda gradient: seen.append(float(gradient.norm())))
    return Case(model, optimizer=_adamw(model))


def good_without_decay() -> Case:
    model = _net(_ranges(0, 7))
    return Case(model, optimizer=_adamw(model, weight_decay=0.0))


def good_plain_steps() -> Case:
    model = _net(_ranges(0, 7))
    return Case(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


def good_another_shape_is_at_hand() -> Case:
    other = torch.zeros(4, 1)
    other[0] = 1.0
    model = _net(lambda gradient: gradient @ other @ other.T)
    return Case(model, optimizer=_adamw(model))
