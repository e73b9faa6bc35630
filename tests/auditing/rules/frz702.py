"""Cases of FRZ702, buffers-broadcast-over-frozen."""

from __future__ import annotations

from torch import nn

import frostline as fl
from tests.auditing.cases import Case
from tests.auditing.rules.frz701 import wrapped
from tests.zoo import live

_ONLY = frozenset({"FRZ702"})


def _net() -> nn.Module:
    return live(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)))


def bad_held_norm() -> Case:
    net = _net()
    fl.freeze(net, "1")
    return Case(wrapped(net), codes=_ONLY)


def bad_inside_a_larger_model() -> Case:
    net = _net()
    fl.freeze(net, "1")
    return Case(nn.Sequential(wrapped(net), nn.Linear(1, 1)), codes=_ONLY)


def good_no_broadcast() -> Case:
    net = _net()
    fl.freeze(net, "1")
    model = wrapped(net)
    model.broadcast_buffers = False
    return Case(model)


def good_only_trainable_norms() -> Case:
    net = _net()
    net[0].requires_grad_(False)
    return Case(wrapped(net))


def good_frozen_buffers_are_ignored() -> Case:
    net = _net()
    fl.freeze(net, "1")
    net._ddp_params_and_buffers_to_ignore = [name for name, _ in net.named_buffers()]
    return Case(wrapped(net))
