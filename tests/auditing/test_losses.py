"""The loss of a step, with and without a function for it."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.auditing.losses import loss_of
from frostline.errors import BatchError
from tests.zoo import ZOO, fresh


class Giving(nn.Module):
    """Gives what its function makes of the input."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor) -> Any:
        return self.make(x)


@dataclass
class Output:
    logits: Tensor
    names: str = ""


X = torch.arange(6.0).view(3, 2)


@pytest.mark.parametrize(
    ("make", "loss", "words"),
    [
        (lambda x: SimpleNamespace(loss=x.sum()), 15.0, "the loss of model(batch)"),
        (lambda x: {"loss": x.sum(), "logits": x}, 15.0, "the loss of model(batch)"),
        (lambda x: {"box": x.sum(), "mask": x.max()}, 20.0,
         "the sum of the losses of model(batch)"),
        (lambda x: {"box": x, "mask": x.max()}, 7.5, "the mean of the output of model(batch)"),
        (lambda x: (x, [x + 1], x.long()), 6.0, "the mean of the output of model(batch)"),
        (lambda x: Output(x), 2.5, "the mean of the output of model(batch)"),
        (lambda x: UserDict(a=x), 2.5, "the mean of the output of model(batch)"),
        (lambda x: torch.complex(x, 0 * x), 2.5, "the mean of the output of model(batch)"),
        (lambda x: SimpleNamespace(loss=None, logits=x), 2.5,
         "the mean of the output of model(batch)"),
    ],
)  # fmt: skip
def test_without_a_function(make: Any, loss: float, words: str) -> None:
    found, told = loss_of(Giving(make), X, None)
    assert (found.item(), told) == (loss, words)


def test_models_of_transformers_give_their_own() -> None:
    entry = ZOO["bert"]
    model = fresh(entry).eval()
    found, told = loss_of(model, entry.batch(), None)
    assert torch.equal(found, entry.loss(model, entry.batch()))
    assert told == "the loss of model(**batch)"


def test_with_a_function() -> None:
    found, told = loss_of(nn.Identity(), X, lambda model, batch: model(batch).max())
    assert (found.item(), told) == (5.0, "compute_loss(model, batch)")


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, "NoneType"),
        (3.5, "float"),
        (X, r"a tensor of torch.float32, shape \[3, 2\]"),
        (torch.tensor(3), r"a tensor of torch.int64, shape \[\]"),
        ((X.sum(), X), "tuple"),
    ],
)
def test_what_is_no_loss(returned: Any, said: str) -> None:
    with pytest.raises(BatchError, match=rf"compute_loss\(model, batch\) returned {said}"):
        loss_of(nn.Identity(), X, lambda model, batch: returned)


@pytest.mark.parametrize("output", [None, "text", {"ids": torch.ones(2, dtype=torch.long)}, []])
def test_nothing_to_make_a_loss_of(output: Any) -> None:
    with pytest.raises(BatchError, match="Pass compute_loss="):
        loss_of(Giving(lambda x: output), X, None)
