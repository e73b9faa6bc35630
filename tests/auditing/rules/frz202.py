"""Cases of FRZ202, trainable-param-not-in-optimizer."""

from __future__ import annotations

import torch
from torch import nn

from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ202"})


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))


def bad_unfrozen_unheard() -> Case:
    model = _net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    model[0].requires_grad_(True)
    return Case(model, optimizer=optimizer, codes=_ONLY)


def bad_frozen_by_leaving_out() -> Case:
    model = _net()
    return Case(model, optimizer=torch.optim.SGD(model[2].parameters(), lr=0.1), codes=_ONLY)


def bad_new_head() -> Case:
    model = _net()
    optimizer = torch.optim.AdamW(model.parameters())
    model.append(nn.Linear(1, 5))
    return Case(model, optimizer=optimizer, codes=_ONLY)


def bad_equal_values_in_another_object() -> Case:
    model = _net()
    model[1].load_state_dict(model[0].state_dict())
    parameters = [*model[0].parameters(), *model[2].parameters()]
    return Case(model, optimizer=torch.optim.SGD(parameters, lr=0.1), codes=_ONLY)


def good_all_of_them() -> Case:
    model = _net()
    return Case(model, optimizer=torch.optim.AdamW(model.parameters()))


def good_what_is_left_out_is_frozen() -> Case:
    model = _net()
    model[0].requires_grad_(False)
    parameters = [*model[1].parameters(), *model[2].parameters()]
    return Case(model, optimizer=torch.optim.AdamW(parameters))


def good_left_out_and_frozen_though_nobody_claims_it() -> Case:
    model = _net()
    model[:2].requires_grad_(False)
    return Case(model, frozen="0", optimizer=torch.optim.AdamW(model[2].parameters()))


def good_tied_and_known_by_its_other_name() -> Case:
    model = _net()
    model[1].weight = model[0].weight
    parameters = [*model[0].parameters(), model[1].bias, *model[2].parameters()]
    return Case(model, optimizer=torch.optim.AdamW(parameters))


def good_several_groups() -> Case:
    model = _net()
    groups = [{"params": list(layer.parameters()), "lr": 0.1 * i} for i, layer in enumerate(model)]
    return Case(model, optimizer=torch.optim.SGD(groups, lr=0.1))
