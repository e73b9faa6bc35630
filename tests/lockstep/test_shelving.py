"""A storage is written once for as long as nobody writes to it."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

from frostline.lockstep.shelving import SMALL, Shelf
from frostline.lockstep.storing import HostStore, Slot


class Counting(HostStore):
    def __init__(self) -> None:
        self.puts = 0

    def put(self, storage: torch.UntypedStorage) -> Slot:
        self.puts += 1
        return super().put(storage)


@pytest.fixture
def store() -> Counting:
    return Counting()


@pytest.fixture
def shelf(store: Counting) -> Shelf:
    return Shelf(store, ())


def large(*shape: int) -> Tensor:
    return torch.randn(shape or (64, 32), dtype=torch.float64)


STRIDED = {
    "transposed": lambda x: x.t(),
    "a part": lambda x: x[3:9, ::2],
    "expanded": lambda x: x[:, :1].expand(64, 50),
    "channels last": lambda x: x.view(2, 8, 8, 16).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("kind", STRIDED)
def test_strides_come_back(shelf: Shelf, kind: str) -> None:
    tensor = STRIDED[kind](large())
    loaded = shelf.put(tensor).load()
    assert torch.equal(loaded, tensor)
    assert loaded.stride() == tensor.stride()
    assert loaded.untyped_storage()._cdata != tensor.untyped_storage()._cdata


def test_views_share_what_is_written(shelf: Shelf, store: Counting) -> None:
    x = large()
    kept = [shelf.put(view) for view in (x, x.t(), x[3:], x.detach())]
    assert store.puts == 1
    assert torch.equal(kept[2].load(), x[3:])


def test_a_write_in_between_is_seen(shelf: Shelf, store: Counting) -> None:
    x = large()
    before, was = shelf.put(x), x.clone()
    x.t().add_(1)
    after = shelf.put(x)
    assert store.puts == 2
    assert torch.equal(before.load(), was)
    assert torch.equal(after.load(), x)


def test_another_storage_at_the_same_address_is_another(shelf: Shelf, store: Counting) -> None:
    kept, values = [], []
    for k in range(50):
        x = torch.full((64, 32), float(k))
        kept.append(shelf.put(x))
        values.append(float(k))
        del x
    assert store.puts == 50
    assert [float(each.load()[0, 0]) for each in kept] == values


def test_what_is_let_go_is_written_again(shelf: Shelf, store: Counting) -> None:
    x = large()
    shelf.put(x)
    gc.collect()
    assert torch.equal(shelf.put(x).load(), x)
    assert store.puts == 2


def test_what_stays_and_what_is_small() -> None:
    weight, x = nn.Parameter(large()), large()
    shelf = Shelf(HostStore(), [weight])
    assert not shelf.takes(weight)
    assert not shelf.takes(weight.t()[:5])
    assert not shelf.is_small(weight)
    assert shelf.takes(x)
    shelf.stay(x)
    assert not shelf.takes(x)
    edge = torch.zeros(SMALL // 8, dtype=torch.float64)
    assert shelf.takes(edge)
    assert not shelf.takes(edge[:-1].clone())
    assert shelf.is_small(edge[:-1].clone())
    for odd in (torch.zeros(9, 9).to_sparse(), torch.zeros(99, 99, device="meta")):
        assert not shelf.takes(odd)
        assert not shelf.is_small(odd)
