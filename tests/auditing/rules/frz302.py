"""Cases of FRZ302, trainable-view-of-frozen-storage."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import frostline as fl
from tests.auditing.cases import Case

_ONLY = frozenset({"FRZ302"})


def _slices(first: slice, second: slice, codes: frozenset[str] = frozenset()) -> Case:
    flat = torch.arange(12.0)
    model = nn.ParameterDict({
        "frozen": nn.Parameter(flat[first], requires_grad=False),
        "trained": nn.Parameter(flat[second]),
    })  # fmt: skip
    return Case(nn.ModuleDict({"flat": model}), frozen="flat.frozen", codes=codes)


def bad_slices_that_overlap() -> Case:
    return _slices(slice(0, 7), slice(6, 12), _ONLY)


def bad_every_other_element() -> Case:
    return _slices(slice(0, 12, 2), slice(4, 5), _ONLY)


def bad_data_of_another_layer() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.data = model[0].weight.data
    model[0].requires_grad_(False)
    return Case(model, codes=_ONLY)


def bad_held_by_a_part() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    fl.freeze(model, "0")
    model[1].weight.data = model[0].weight.data[:1].T
    return Case(model, codes=_ONLY)


def bad_one_array_of_numpy() -> Case:
    array = np.ones((2, 2), dtype=np.float32)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    for layer in model:
        layer.weight.data = torch.from_numpy(array)
    model[0].requires_grad_(False)
    return Case(model, codes=_ONLY)


def bad_frozen_buffer() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].register_buffer("copy", model[1].weight.detach())
    model[0].requires_grad_(False)
    return Case(model, codes=_ONLY)


def good_neighbours_in_one_storage() -> Case:
    return _slices(slice(0, 6), slice(6, 12))


def good_interleaved() -> Case:
    return _slices(slice(0, 12, 2), slice(1, 12, 2))


def good_the_other_is_frozen_and_not_claimed() -> Case:
    case = good_both_frozen()
    case.frozen = "0"
    return case


def good_both_frozen() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].weight.data = model[0].weight.data
    model[:2].requires_grad_(False)
    return Case(model)


def good_equal_values() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].load_state_dict(model[0].state_dict())
    model[0].requires_grad_(False)
    return Case(model)


def good_one_object_at_two_places() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].weight = model[0].weight
    model[:2].requires_grad_(False)
    return Case(model)
