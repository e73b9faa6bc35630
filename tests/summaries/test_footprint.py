"""Bytes are counted once, compared with the slow obvious way: a set of addresses."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline.summaries.footprint import Footprint, Size, nbytes


def addresses(tensor: Tensor) -> set[int]:
    """Every byte that `tensor` looks at."""
    places = itertools.product(*(range(n) for n in tensor.shape))
    steps = tensor.stride()
    return {
        tensor.data_ptr() + sum(map(int.__mul__, place, steps)) * tensor.element_size() + byte
        for place in places
        for byte in range(tensor.element_size())
    }


@st.composite
def views(draw: st.DrawFn, memory: int = 48) -> Tensor:
    """A window on 48 floats, with any sizes, strides and start that fit, as some dtype."""
    flat = MEMORY.view(draw(st.sampled_from([torch.float32, torch.float16, torch.uint8])))
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    strides = draw(st.lists(st.integers(0, 5), min_size=len(shape), max_size=len(shape)))
    reach = sum(max(n - 1, 0) * s for n, s in zip(shape, strides, strict=True))
    start = draw(st.integers(0, flat.numel() - 1 - reach))
    return flat.as_strided(shape, strides, start)


MEMORY = torch.zeros(64)


@given(st.lists(views(), min_size=1, max_size=5))
def test_any_windows_on_one_memory(tensors: list[Tensor]) -> None:
    expected = len(set().union(*map(addresses, tensors)))
    assert nbytes(tensors) == expected
    # The same windows where there is no memory: only the storage says what is shared.
    empty = MEMORY.to("meta")
    ghosts = [
        empty.view(t.dtype).as_strided(t.shape, t.stride(), t.storage_offset()) for t in tensors
    ]
    assert nbytes(ghosts) == expected


@given(st.lists(views(), min_size=2, max_size=4))
def test_parts_of_a_footprint(tensors: list[Tensor]) -> None:
    found = Footprint(tensors)
    some, others = tensors[:1], tensors[1:]
    windows = {window for t in some for window in found.of[id(t)]}
    rest = {window for t in others for window in found.of[id(t)]}
    left, right = (set().union(*map(addresses, part)) for part in (some, others))
    assert found.size(windows).bytes == len(left)
    assert found.size(rest).bytes == len(right)
    assert found.size(windows | rest).bytes == len(left | right)
    assert found.share(windows, rest) == bool(left & right)


class Scaled(Tensor):
    """A wrapper of 8-bit codes and a scale for each row."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> Scaled:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes: Tensor, scale: Tensor) -> None:
        self.codes, self.scale = codes, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(str(func))


def test_a_wrapper_has_the_bytes_inside_and_the_elements_that_it_shows() -> None:
    codes, scale = torch.zeros(3, 8, dtype=torch.int8), torch.ones(3)
    wrapper = Scaled(codes, scale)
    found = Footprint([wrapper, wrapper])
    assert found.size(found.windows) == Size(24, 24 + 12)
    assert nbytes([wrapper, codes, Scaled(codes, scale)]) == 24 + 12


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_tensors_by_what_they_hold(layout: torch.layout) -> None:
    dense = torch.eye(100)
    sparse = {
        torch.sparse_coo: dense.to_sparse,
        torch.sparse_csr: dense.to_sparse_csr,
        torch.sparse_csc: dense.to_sparse_csc,
    }[layout]()
    found = Footprint([sparse])
    indices = 2 * 100 if layout is torch.sparse_coo else 101 + 100
    assert found.size(found.windows) == Size(100, 100 * 4 + indices * 8)


def test_a_layout_that_shows_no_memory() -> None:
    assert nbytes([torch.zeros(3, 5).to_mkldnn()]) == 60


def test_two_storages_on_one_memory_are_one() -> None:
    flat = torch.zeros(10)
    other = torch.from_numpy(flat.numpy())
    assert other.untyped_storage()._cdata != flat.untyped_storage()._cdata
    assert nbytes([flat, nn.Parameter(other[5:])]) == 40


def test_neighbours_are_two() -> None:
    flat = torch.zeros(10)
    found = Footprint([flat[:5], flat[5:]])
    assert not found.share(found.of.popitem()[1], found.of.popitem()[1])
    assert len(found.windows) == 2
