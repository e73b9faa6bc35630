"""Cases of FRZ100, unexplained-change."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ100"})


def _net() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    return model


def _case(model: nn.Sequential, hook: Any, codes: frozenset[str] = frozenset()) -> Case:
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    optimizer.register_step_post_hook(hook)
    return Case(model, optimizer=optimizer, batch=torch.randn(4, 2), codes=codes)


def bad_a_hook_of_the_optimizer_writes() -> Case:
    model = _net()
    return _case(model, lambda *_: model[0].weight.data.mul_(0.9), _ONLY)


def bad_a_forward_hook_writes() -> Case:
    model = _net()

    def shift(*_: Any) -> None:
        model[0].bias.data.add_(1.0)

    model[1].register_forward_hook(shift)
    return _case(model, lambda *_: None, _ONLY)


def good_a_hook_writes_the_same_bytes() -> Case:
    model = _net()
    return _case(model, lambda *_: model[0].weight.data.mul_(1.0))


def good_a_hook_writes_what_is_trainable() -> Case:
    model = _net()
    return _case(model, lambda *_: model[1].weight.data.mul_(0.9))
