"""Cases of FRZ701, flags-changed-under-ddp."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ701"})


def wrapped(net: nn.Module) -> DistributedDataParallel:
    """In a process group of one rank, which is left again."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return DistributedDataParallel(net)
    finally:
        dist.destroy_process_group()


def _net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))


def bad_frozen_after_wrapping() -> Case:
    model = wrapped(_net())
    model.module[0].requires_grad_(False)
    return Case(model, codes=_ONLY)


def bad_unfrozen_after_wrapping() -> Case:
    net = _net()
    net[0].requires_grad_(False)
    model = wrapped(net)
    net[0].requires_grad_(True)
    return Case(model, codes=_ONLY)


def bad_parameter_replaced() -> Case:
    model = wrapped(_net())
    model.module[1].weight = nn.Parameter(model.module[1].weight.detach().clone())
    return Case(model, codes=_ONLY)


def bad_layer_added_inside_a_larger_model() -> Case:
    net = _net()
    model = nn.Sequential(wrapped(net), nn.Linear(1, 1))
    net.append(nn.Linear(1, 1))
    return Case(model, codes=_ONLY)


def good_frozen_before_wrapping() -> Case:
    net = _net()
    net[0].requires_grad_(False)
    return Case(wrapped(net))


def good_off_and_on_again() -> Case:
    model = wrapped(_net())
    model.module[0].requires_grad_(False)
    model.module[0].requires_grad_(True)
    return Case(model)


def good_tied_and_ignored() -> Case:
    net = _net()
    net[1].weight = net[0].weight
    net._ddp_params_and_buffers_to_ignore = ["2.weight"]
    return Case(wrapped(net))


def good_outside_of_the_wrapper() -> Case:
    model = nn.Sequential(wrapped(_net()), nn.Linear(1, 1))
    model[1].requires_grad_(False)
    return Case(model)
