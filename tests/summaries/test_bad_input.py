"""What cannot be summed up, answered with what to write instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import frostline as fl
from frostline.errors import BatchError, FreezeError
from frostline.summaries import summary


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("model", "kind", "words"),
    [
        ("resnet", TypeError, "got a str. Write fl.summary(model)"),
        (net().parameters(), TypeError, "did you pass model.parameters()?"),
        (fl.freeze(net()), FreezeError, "got a FrozenPart"),
    ],
)
def test_no_model(model: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as error:
        summary(model)
    assert words in str(error.value)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, [1], "adam", 0.1])
def test_no_optimizer(optimizer: Any) -> None:
    with pytest.raises(TypeError, match="no torch optimizer"):
        summary(net(), optimizer=optimizer)


@pytest.mark.parametrize("batch", [DataLoader([1, 2]), iter([torch.zeros(1, 4)])])
def test_no_batch(batch: Any) -> None:
    with pytest.raises(TypeError, match=r"expected one batch: batch=next\(iter\(loader\)\)"):
        summary(net(), batch=batch)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (torch.zeros(2, 3), "model(batch) raised RuntimeError: mat1 and mat2 shapes"),
        ((torch.zeros(2, 3),), "model(batch[0]) raised RuntimeError"),
        ({"x": torch.zeros(2, 4)}, "model(**batch) raised TypeError"),
        ("text", "model(batch) raised TypeError"),
        ((), "model(batch[0]) raised IndexError"),
    ],
)
def test_a_batch_that_does_not_fit(
    batch: Any, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BatchError) as error:
        summary(net(), batch=batch)
    assert words in str(error.value)
    assert error.value.__cause__ is not None
    assert caplog.records == []
