"""Which batches are used, and which sets of batches are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from frostline.errors import BatchError
from frostline.recalibration import recalibrate
from tests.recalibration import truth

DATA = torch.arange(48.0).reshape(24, 2)


def norm() -> nn.Module:
    return nn.BatchNorm1d(2)


class Rows(Dataset[tuple[Tensor, int]]):
    """Counts what is loaded."""

    def __init__(self) -> None:
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return len(DATA)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.loaded.append(i)
        return DATA[i], i


class Again:
    """A length, and the same batches at each pass: no list, no loader."""

    def __init__(self, says: int = 6) -> None:
        self.says, self.passes = says, 0

    def __len__(self) -> int:
        return self.says

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        yield from DATA.split(4)


def mean_of(*rows: int) -> Tensor:
    return torch.cat([DATA[4 * i : 4 * i + 4] for i in rows]).mean(0)


@pytest.mark.parametrize(
    ("samples", "used"),
    [(None, range(6)), (1024, range(6)), (24, range(6)), (21, range(6)), (20, [0, 1, 2, 3, 4]),
     (12, [0, 2, 4]), (8, [0, 3]), (5, [0, 3]), (4, [0]), (1, [0])],
)  # fmt: skip
@pytest.mark.parametrize("kind", [list, lambda b: DataLoader(Rows(), 4), lambda b: Again()])
def test_batches_are_drawn_evenly(samples: int | None, used: list[int], kind: Any) -> None:
    model, batches = norm(), kind(DATA.split(4))
    result = recalibrate(model, batches, samples=samples)
    torch.testing.assert_close(model.running_mean, mean_of(*used))
    assert (result.samples, result.batches) == (4 * len(used), len(used))
    if isinstance(batches, DataLoader):  # nothing is loaded that is not used
        assert batches.dataset.loaded == [r for i in used for r in range(4 * i, 4 * i + 4)]
    if isinstance(batches, Again):
        assert batches.passes == 1


def test_the_last_batch_may_be_short() -> None:
    model = norm()
    result = recalibrate(model, DataLoader(TensorDataset(DATA), batch_size=7))
    torch.testing.assert_close(model.running_var, DATA.var(0))
    assert (result.samples, result.batches) == (24, 4)
    assert result.called == "model(batch[0])"


def test_workers_and_collate_functions_are_kept() -> None:
    loader = DataLoader(Rows(), 4, num_workers=1, collate_fn=lambda rows: -rows[0][0].expand(3, 2))
    model = norm()
    recalibrate(model, loader, samples=6)
    torch.testing.assert_close(model.running_mean, -DATA[[0, 12]].mean(0))


SHUFFLING = {
    "shuffle=True": lambda: DataLoader(Rows(), 4, shuffle=True),
    "sampler": lambda: DataLoader(Rows(), 4, sampler=SubsetRandomSampler(range(8))),
    "weights": lambda: DataLoader(Rows(), 4, sampler=WeightedRandomSampler([1.0] * 24, 8)),
    "batch sampler": lambda: DataLoader(
        Rows(), batch_sampler=BatchSampler(RandomSampler(Rows()), 4, drop_last=False)
    ),
    "distributed": lambda: DataLoader(
        Rows(), 4, sampler=DistributedSampler(Rows(), num_replicas=1, rank=0)
    ),
}


@pytest.mark.parametrize("how", SHUFFLING)
def test_a_loader_that_shuffles_is_refused_and_can_be_merged(how: str) -> None:
    model, loader = norm(), SHUFFLING[how]()
    with pytest.raises(BatchError, match=r"shuffles \(.*Sampler\).*shuffle=False\)"):
        recalibrate(model, loader)
    assert model.num_batches_tracked == 0
    recalibrate(model, loader, method="merged")


def test_an_order_that_is_fixed_is_no_shuffling() -> None:
    sampler = DistributedSampler(Rows(), num_replicas=2, rank=1, shuffle=False)
    model = norm()
    recalibrate(model, DataLoader(Rows(), 4, sampler=sampler))
    torch.testing.assert_close(model.running_mean, DATA[1::2].mean(0))


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(DATA)


@pytest.mark.parametrize(
    "batches", [lambda: iter(DATA.split(4)), lambda: (b for b in DATA.split(4)), lambda: zip(DATA)]
)
def test_an_iterator_is_refused_and_can_be_merged(batches: Any) -> None:
    with pytest.raises(BatchError, match=r'can be gone through once.*method="merged"'):
        recalibrate(norm(), batches())
    model = norm()
    recalibrate(model, iter(DATA.split(4)), method="merged")
    torch.testing.assert_close(model.running_mean, DATA.mean(0))


def test_a_loader_without_a_length_is_refused_and_can_be_merged() -> None:
    with pytest.raises(BatchError, match=r'a DataLoader, has no length.*method="merged"'):
        recalibrate(norm(), DataLoader(Stream(), 4))
    model = norm()
    recalibrate(model, DataLoader(Stream(), 4), method="merged", samples=None)
    torch.testing.assert_close(model.running_mean, DATA.mean(0))


@pytest.mark.parametrize("method", ["layerwise", "merged"])
def test_a_length_that_is_wrong_is_said(method: Any) -> None:
    with pytest.raises(BatchError, match=r"9 batches were to be used .* ended after 6"):
        recalibrate(norm(), Again(says=9), method=method)


@pytest.mark.parametrize("method", ["layerwise", "merged"])
@pytest.mark.parametrize("batches", [[], DataLoader(TensorDataset(DATA[:0]), 4), Again(0)])
def test_an_empty_set_is_refused(batches: Any, method: Any) -> None:
    if isinstance(batches, Again):
        batches.__class__ = type("Empty", (Again,), {"__iter__": lambda _: iter(())})
    with pytest.raises(BatchError, match="the calibration set is empty"):
        recalibrate(norm(), batches, method=method)


@pytest.mark.parametrize("method", ["layerwise", "merged"])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (DATA[:0], "a batch has no samples in it"),
        ("text", "a batch is a str without a tensor"),
        (torch.tensor(1.0), "a batch is a Tensor without a tensor"),
        (({"inner": (i for i in "x")}, DATA), "cannot be copied"),
    ],
)
def test_a_batch_that_is_none_is_refused(batch: Any, message: str, method: Any) -> None:
    model = norm()
    with pytest.raises(BatchError, match=message):
        recalibrate(model, [batch], method=method)
    assert model.num_batches_tracked == 0


def test_the_same_batch_twice_counts_twice() -> None:
    model = truth.Shared()
    batch = torch.randn(4, 5)
    result = recalibrate(model, [batch, batch])
    assert result.samples == 8
