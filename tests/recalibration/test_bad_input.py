"""Wrong arguments: one error that says what to write instead, and nothing is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import frostline as fl
from frostline.errors import AccumulationError, BatchError, FreezeError
from frostline.recalibration import recalibrate
from tests.zoo import live

X = torch.randn(6, 3)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (X, r"a Tensor, which is one batch.*fl.recalibrate\(model, \[batch\]\)"),
        ({"x": X}, "a dict, which is one batch"),
        ((X, X), "a tuple, which is one batch"),
        (TensorDataset(X), r"a TensorDataset, which gives samples.*DataLoader\(dataset"),
        (7, r"batches is a int.*fl.recalibrate\(model, loader\)"),
        ("train", "batches is a str"),
        (net(), "batches is a Sequential"),
        (None, "batches is a NoneType"),
    ],
)
@pytest.mark.parametrize("method", ["layerwise", "merged"])
def test_what_is_no_set_of_batches(batches: Any, message: str, method: Any) -> None:
    with pytest.raises(TypeError, match=message):
        recalibrate(net(), batches, method=method)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "exact"}, ValueError, "expected 'layerwise' or 'merged'"),
        ({"samples": 0}, ValueError, "expected 1 or more, or None for all"),
        ({"samples": 10.0}, TypeError, "samples=1024"),
        ({"samples": True}, TypeError, "samples=1024"),
    ],
)
def test_wrong_switches(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        recalibrate(net(), [X], **arguments)


def test_what_is_no_model() -> None:
    with pytest.raises(TypeError, match=r"Write fl.recalibrate\(model"):
        recalibrate(X, [X])  # type: ignore[arg-type]
    with pytest.raises(FreezeError, match="got a FrozenPart"):
        recalibrate(fl.freeze(live(net())), [X])  # type: ignore[arg-type]


def test_models_that_cannot_be_run() -> None:
    with pytest.raises(BatchError, match="has no shape before the first forward"):
        recalibrate(nn.Sequential(nn.LazyBatchNorm1d()), [X])
    with pytest.raises(BatchError, match="on the meta device"):
        recalibrate(net().to("meta"), [X])
    with pytest.raises(BatchError, match="scripted or traced"):
        recalibrate(torch.jit.trace(net().eval(), X), [X])


@pytest.mark.parametrize("batches", [[X[:1]], [X[:1, :2]]])
def test_one_value_for_each_channel_has_no_variance(batches: Any) -> None:
    model = nn.Sequential(nn.BatchNorm1d(batches[0].shape[1]))
    with pytest.raises(AccumulationError, match=r"^0 has one value for each channel in the whole"):
        recalibrate(model, batches)
    assert model[0].num_batches_tracked == 0


def test_two_values_are_enough() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    recalibrate(model, [X[:1], X[1:2]])
    torch.testing.assert_close(model[0].running_var, X[:2].var(0))


def test_a_batch_that_does_not_fit_says_how_it_was_called() -> None:
    with pytest.raises(BatchError, match=r"^batch 1: model\(batch\) raised RuntimeError.*\n.*dict"):
        recalibrate(net(), [X, X[:, :2]])
