"""Cases of FRZ203, duplicate-param-in-optimizer."""

from __future__ import annotations

import torch
from torch import nn

from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ203"})


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))


def bad_appended_twice() -> Case:
    model = _net()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    for _ in range(2):
        optimizer.param_groups[0]["params"] += [*model[0].parameters(), *model[1].parameters()]
    return Case(model, optimizer=optimizer, codes=_ONLY)


def bad_in_two_groups() -> Case:
    model = _net()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.param_groups.append({**optimizer.param_groups[0], "params": [model[1].weight]})
    return Case(model, optimizer=optimizer, codes=_ONLY)


def good_once_each() -> Case:
    model = _net()
    groups = [{"params": layer.parameters()} for layer in model]
    return Case(model, optimizer=torch.optim.AdamW(groups))


def good_tied_once() -> Case:
    model = _net()
    model[1].weight = model[0].weight
    return Case(model, optimizer=torch.optim.AdamW(model.parameters()))


def good_equal_values() -> Case:
    model = _net()
    model[1].load_state_dict(model[0].state_dict())
    return Case(model, optimizer=torch.optim.AdamW(model.parameters()))
