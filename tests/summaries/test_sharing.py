"""Tensors that share bytes: against marking every byte."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline._names import NamedTensor
from frostline.summaries.sharing import sharing

SIZE = 24
slices = st.builds(slice, st.integers(0, SIZE), st.integers(0, SIZE), st.integers(1, 4))
sides = st.lists(slices, max_size=6)


def named(tensors: list[Tensor]) -> list[NamedTensor]:
    owner = nn.Module()
    return [
        NamedTensor(str(i), tensor, "parameter", True, owner, str(i))
        for i, tensor in enumerate(tensors)
    ]


@given(sides, sides)
def test_as_marking_every_element(left: list[slice], right: list[slice]) -> None:
    flat = torch.arange(float(SIZE))
    expected = {
        (str(i), str(j))
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if set(range(SIZE)[a]) & set(range(SIZE)[b])
    }
    one, other = named([flat[s] for s in left]), named([flat[s] for s in right])
    assert {(a.name, b.name) for a, b in sharing(one, other)} == expected


def test_the_same_object_shares_nothing_with_itself() -> None:
    same = torch.zeros(3)
    assert list(sharing(named([same]), named([same]))) == []


def test_storages_without_memory() -> None:
    flat = torch.zeros(8, device="meta")
    left, right = named([flat[:5]]), named([flat[5:], flat[4:], torch.zeros(8, device="meta")])
    assert [b.name for _, b in sharing(left, right)] == ["1"]


def test_values_of_a_sparse_tensor() -> None:
    sparse = torch.eye(3).to_sparse()
    left = named([sparse, torch.zeros(0), torch.zeros(())])
    right = named([sparse._values(), torch.eye(3).to_sparse(), torch.zeros(0)])
    assert [(a.name, b.name) for a, b in sharing(left, right)] == [("0", "0")]
    assert [(a.name, b.name) for a, b in sharing(right, left)] == [("0", "0")]
