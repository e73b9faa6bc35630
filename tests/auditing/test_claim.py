"""What is claimed to be frozen: by a selector, by flags, by parts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.auditing.claim import claim
from frostline.errors import SelectionError
from tests.zoo import live


def net() -> nn.Sequential:
    return live(nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()), nn.Linear(2, 1)
    ))  # fmt: skip


def names(model: nn.Module, frozen: object = None) -> list[str]:
    return [entry.name for entry in claim(model, frozen).tensors.values()]


def test_flags_claim_parameters_and_the_buffers_of_what_is_frozen_as_a_whole() -> None:
    model = net()
    model[0].requires_grad_(False)
    assert names(model) == [
        "0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias",
        "0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked",
    ]  # fmt: skip
    assert {id(m) for m in model[0].modules()} == claim(model, None).modules


def test_a_half_frozen_norm_claims_its_frozen_half_and_no_statistics() -> None:
    model = net()
    model[0][1].weight.requires_grad_(False)
    assert names(model) == ["0.1.weight"]
    assert claim(model, None).modules == set()


def test_a_selector_claims_whatever_the_flags_say() -> None:
    model = net()
    model[1].requires_grad_(False)
    assert names(model, "0.1") == [
        "0.1.weight", "0.1.bias", "0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked",
    ]  # fmt: skip


def test_a_part_claims_what_it_covers_beside_the_flags() -> None:
    model = net()
    model[1].requires_grad_(False)
    fl.freeze(model, "0.1", params=False)
    found = claim(model, None)
    assert found.text == "requires_grad=False, and fl.freeze"
    assert {e.name for e in found.tensors.values()} == {
        "1.weight", "1.bias", "0.1.running_mean", "0.1.running_var", "0.1.num_batches_tracked",
    }  # fmt: skip


@pytest.mark.parametrize(
    "switches", [{}, {"mode": "follow"}, {"params": False}, {"stats": "batch"}]
)
def test_all_that_a_part_covers(switches: dict[str, Any]) -> None:
    model = net()
    part = fl.freeze(model, ["0", "1.weight"], **switches)
    found = claim(model, None)
    assert {e.name for e in found.tensors.values()} == set(part.tensors)
    assert set(map(id, part.modules.values())) <= found.modules


def test_a_copy_is_asked_without_giving_it_parts() -> None:
    model = net()
    fl.freeze(model, "0")
    copied = copy.deepcopy(model)
    before = dict(vars(copied))
    assert names(copied) == names(model)
    assert dict(vars(copied)) == before


def test_statistics_that_a_part_lets_move_are_not_claimed() -> None:
    model = net()
    fl.freeze(model, "0", stats="update")
    assert names(model) == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]
    assert names(model, "0") == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]


def test_nothing_is_claimed() -> None:
    found = claim(net(), None)
    assert found.tensors == {}
    assert found.text.startswith("nothing")


def test_a_selector_that_selects_nothing_is_refused() -> None:
    with pytest.raises(SelectionError, match="matches nothing"):
        claim(net(), "backbone")


def test_a_tied_tensor_is_claimed_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    found = claim(model, "embed")
    assert [e.name for e in found.tensors.values()] == ["embed.weight"]
    assert id(model["head"].weight) in found.tensors
    assert [e.name for e in found.selected] == ["embed.weight"]


def test_equal_values_are_not_the_same_tensor() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    with torch.no_grad():
        model["b"].weight.copy_(model["a"].weight)
    assert id(model["b"].weight) not in claim(model, "a").tensors
