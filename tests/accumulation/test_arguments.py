"""Wrong arguments get an error of ours that says what to write; right ones beside them do not."""

from __future__ import annotations

import functools
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from frostline.accumulation.arguments import (
    bytes_of,
    check,
    check_accumulator,
    checked_loss,
    nonfinite,
    refuse_nonfinite,
)
from frostline.accumulation.splitting import split
from frostline.errors import AccumulationError, BatchError
from tests.zoo import ZOO, classify, fresh

Pair = namedtuple("Pair", ["x", "y"])
NET = nn.Linear(2, 1)
X, Y = torch.zeros(4, 2), torch.arange(4)
RIGHT: dict[str, Any] = {
    "model": NET,
    "compute_loss": classify,
    "microbatches": [(X, Y)],
    "items": None,
    "batchnorm": "exact",
    "offload": "auto",
    "memory": None,
    "backward": None,
}


def refused(error: type[Exception] = AccumulationError, **wrong: Any) -> str:
    with pytest.raises(error) as caught:
        check(**RIGHT | wrong)
    return str(caught.value)


def own_criterion(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean()


class Lightning(nn.Module):
    def compute_loss(self, model: nn.Module, batch: Any) -> Tensor:
        return classify(model, batch)


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(),
        F.cross_entropy,
        F.mse_loss,
        functools.partial(F.cross_entropy, label_smoothing=0.1),
        nn.BCEWithLogitsLoss().forward,
        functools.partial(nn.CrossEntropyLoss()),
        own_criterion,
        lambda logits, labels: logits.sum(),
        functools.partial(lambda scale, logits, labels: logits.sum(), 2.0),
        nn.Linear(2, 2),
    ],
)
def test_a_criterion_gets_the_function_to_write(criterion: Any) -> None:
    assert refused(compute_loss=criterion) == (
        "`compute_loss` takes (model, batch) and returns the loss; you passed a criterion. "
        "Write: def compute_loss(model, batch): x, y = batch; return criterion(model(x), y)"
    )


@pytest.mark.parametrize(
    "compute_loss",
    [
        classify,
        lambda m, b: m(b),
        lambda *everything: None,
        lambda output_model, target_batch: None,
        lambda net, target: None,
        functools.partial(lambda scale, model, batch: None, 2.0),
        Lightning().compute_loss,
        max,
    ],
)
def test_functions_of_model_and_batch_pass(compute_loss: Callable[..., Any]) -> None:
    check(**RIGHT | {"compute_loss": compute_loss})


def test_functions_of_something_else_are_refused() -> None:
    assert "expected a function (model, batch) -> loss" in refused(compute_loss=None)
    assert "compute_loss(model, batch)" in refused(compute_loss=lambda batch: batch)
    assert "compute_loss(model, batch)" in refused(compute_loss=lambda a, b, c: a)


@pytest.mark.parametrize(
    ("microbatches", "told", "line"),
    [
        (
            DataLoader(TensorDataset(X, Y)),
            "a DataLoader",
            "it = iter(loader); microbatches = [next",
        ),
        (iter([X]), "a list_iterator", "[next(it) for _ in range(4)]"),
        ((x for x in [X]), "a generator", "[next(it) for _ in range(4)]"),
        (X, "a tensor [4, 2]", "fl.split(batch, size=8)"),
        ({"x": X}, "a dict", "fl.split(batch, size=8)"),
        (Pair(X, Y), "a Pair of 2", "fl.split(batch, size=8)"),
        ((X, Y), "a tuple of 2: a tensor [4, 2], a tensor [4]", "fl.split(batch, size=8)"),
        ([X, X.long()], "a list of 2", "fl.split(batch, size=8)"),
        ([], "a list of 0", "fl.split(batch, size=8)"),
        (TensorDataset(X), "a TensorDataset", "fl.split(batch, size=8)"),
        (None, "None", "fl.split(batch, size=8)"),
    ],
)
def test_what_is_no_list_of_batches_is_refused(microbatches: Any, told: str, line: str) -> None:
    text = refused(BatchError, microbatches=microbatches)
    assert f"microbatches is {told}" in text
    assert line in text


@pytest.mark.parametrize(
    "microbatches",
    [
        split((X, Y), size=2),
        split(X, size=2),
        X.split(3),
        split({"x": X}, size=1),
        [Pair(X, Y)],
        ((X, Y), (X, Y)),
        ["a", "b"],
    ],
)
def test_lists_and_tuples_of_batches_pass(microbatches: Any) -> None:
    check(**RIGHT | {"microbatches": microbatches})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": classify}, "model is a function; expected an nn.Module first"),
        ({"model": None}, "model is None"),
        ({"model": nn.LazyLinear(3)}, "weight has no shape before the first forward"),
        ({"batchnorm": "Exact"}, "'exact', 'deferred', 'compensated' or 'plain'"),
        ({"batchnorm": None}, "batchnorm=None: expected"),
        ({"offload": "gpu"}, "offload='gpu': expected None, 'cpu', 'disk' or 'auto'"),
        ({"offload": False}, "offload=False: expected"),
        ({"items": 8}, "items is 8; expected a function"),
        ({"backward": "scaler"}, "backward is 'scaler'; expected a function"),
        ({"memory": "4 gigs"}, "memory='4 gigs': expected the bytes"),
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any], says: str) -> None:
    assert says in refused(**wrong)


def test_right_options_pass() -> None:
    for offload in (None, "cpu", "disk", "auto"):
        check(**RIGHT | {"offload": offload, "batchnorm": "plain", "memory": "1GB"})
    check(**RIGHT | {"items": len, "backward": Tensor.backward})


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (None, None),
        (1, 1),
        (4e9, 4_000_000_000),
        ("4GB", 4_000_000_000),
        ("512MiB", 512 * 2**20),
        (" 1.5 gib ", 3 * 2**29),
        ("1TB", 10**12),
        ("2KiB", 2048),
        ("800B", 800),
    ],
)
def test_memory_is_bytes(memory: Any, expected: int | None) -> None:
    found = bytes_of(memory)
    assert found == expected
    assert found is None or type(found) is int


@pytest.mark.parametrize(
    "memory",
    [0, -1, True, float("nan"), float("inf"), "", "4", "GB", "-4GB", "0GB", "4GBs", [4], X],
)
def test_what_is_no_amount_of_memory_is_refused(memory: Any) -> None:
    with pytest.raises(AccumulationError, match='memory="4GB" or memory="512MiB"'):
        bytes_of(memory)


def accumulator(**changed: Any) -> None:
    right: dict[str, Any] = {
        "model": NET,
        "optimizer": torch.optim.SGD(NET.parameters()),
        "microbatches": 4,
        "batchnorm": "deferred",
        "max_grad_norm": None,
        "scaler": None,
        "scheduler": None,
    }
    check_accumulator(**right | changed)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"model": 3}, "model is 3; expected an nn.Module first: fl.Accumulator(model,"),
        ({"optimizer": NET}, "optimizer is a Linear; expected a torch.optim.Optimizer"),
        (
            {"optimizer": torch.optim.SGD(nn.Linear(2, 1).parameters())},
            "the optimizer has none of the model's parameters",
        ),
        ({"microbatches": 0}, "microbatches=0: expected how many there are to a step"),
        ({"microbatches": 2.0}, "microbatches=2.0: expected"),
        ({"microbatches": True}, "microbatches=True: expected"),
        ({"microbatches": [X]}, "microbatches=a list of 1: a tensor [4, 2]: expected"),
        ({"batchnorm": "exact"}, "fl.accumulate(model, compute_loss, microbatches)"),
        ({"batchnorm": "none"}, "expected 'deferred', 'compensated' or 'plain'"),
        ({"max_grad_norm": 0}, "max_grad_norm=0: expected the largest norm"),
        ({"max_grad_norm": "1"}, "max_grad_norm='1': expected"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm=nan: expected"),
        ({"scaler": 1024}, "scaler is 1024; expected a gradient scaler"),
        ({"scheduler": 0.1}, "scheduler is 0.1; expected one with a step()"),
    ],
)
def test_wrong_arguments_of_the_accumulator_are_refused(wrong: Any, says: str) -> None:
    with pytest.raises(AccumulationError) as caught:
        accumulator(**wrong)
    assert says in str(caught.value)


def test_right_arguments_of_the_accumulator_pass() -> None:
    optimizer = torch.optim.SGD(NET.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    scaler = torch.amp.GradScaler("cpu")
    accumulator()
    accumulator(optimizer=optimizer, scheduler=scheduler, scaler=scaler, max_grad_norm=1)
    accumulator(max_grad_norm=float("inf"), batchnorm="plain", microbatches=1)
    on_plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(AccumulationError, match="whose step needs a metric"):
        accumulator(scheduler=on_plateau)


def test_a_wrapped_optimizer_is_told_what_it_wraps() -> None:
    class Wrapper:
        optimizer = torch.optim.SGD(NET.parameters())

    with pytest.raises(AccumulationError, match=r"pass what it wraps: optimizer\.optimizer"):
        accumulator(optimizer=Wrapper())


def test_the_loss_of_a_real_model_is_returned_as_a_scalar() -> None:
    entry = ZOO["mlp_bn1d"]
    model = fresh(entry)
    loss = entry.loss(model, entry.batch())
    assert torch.equal(checked_loss(loss, model, 0), loss)
    assert checked_loss(loss.reshape(1), model, 0).shape == ()


def test_losses_that_are_none_are_refused() -> None:
    entry = ZOO["bert"]
    model = fresh(entry)
    output = model(**entry.batch())
    losses = NET(X).squeeze(1)
    for wrong, says in (
        (output, "expected the loss, a scalar tensor: return model(**batch).loss"),
        (None, "returned None for microbatch 3; expected the loss"),
        (0.5, "returned 0.5 for microbatch 3"),
        (losses, "returned a tensor [4] for microbatch 3; expected a scalar"),
        (torch.tensor(3), "of torch.int64; expected a floating point loss"),
        (losses.mean().detach(), "which has no gradient: no trainable parameter went into it"),
    ):
        with pytest.raises(AccumulationError) as caught:
            checked_loss(wrong, NET, 3)
        assert says in str(caught.value)


def test_a_loss_without_gradient_is_told_why() -> None:
    with torch.no_grad(), pytest.raises(AccumulationError, match=r"torch\.no_grad\(\)"):
        checked_loss(NET(X).mean(), NET, 0)
    frozen = nn.Linear(2, 1).requires_grad_(False)
    assert not checked_loss(frozen(X).mean(), frozen, 0).requires_grad


def test_losses_that_are_not_finite_are_named() -> None:
    losses = [torch.tensor(value) for value in (1.0, float("nan"), 2.0, float("-inf"))]
    assert nonfinite(losses) == [1, 3]
    with pytest.raises(AccumulationError) as caught:
        refuse_nonfinite(losses)
    assert "the loss of microbatch 1, and of 1 more, is nan; expected" in str(caught.value)
    with pytest.raises(AccumulationError, match="the loss of microbatch 1 is -inf"):
        refuse_nonfinite([losses[0], losses[3]])
    refuse_nonfinite([losses[0], losses[2]])
