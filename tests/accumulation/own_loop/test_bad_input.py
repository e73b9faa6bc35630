"""Wrong arguments and wrong places: what is wrong, and what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau

import frostline as fl
from frostline.accumulation.accumulator import Accumulator
from frostline.errors import AccumulationError
from tests.accumulation.own_loop.loops import batch_norm_net

NET = batch_norm_net()
SGD_OF_NET = SGD(NET.parameters(), lr=0.1)
X = torch.ones(3, 6).double()

ARGUMENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "microbatches 0": (lambda: Accumulator(NET, SGD_OF_NET, 0), "microbatches=0: .*1 or more"),
    "microbatches -1": (lambda: Accumulator(NET, SGD_OF_NET, -1), "microbatches=-1"),
    "microbatches 2.0": (lambda: Accumulator(NET, SGD_OF_NET, 2.0), "microbatches=2.0"),  # type: ignore[arg-type]
    "microbatches true": (lambda: Accumulator(NET, SGD_OF_NET, True), "microbatches=True"),
    "microbatches a loader": (lambda: Accumulator(NET, SGD_OF_NET, [X]), "microbatches=a list"),  # type: ignore[arg-type]
    "no model": (lambda: Accumulator(NET.parameters(), SGD_OF_NET, 2), "expected an nn.Module"),  # type: ignore[arg-type]
    "a part": (
        lambda: Accumulator(fl.freeze(batch_norm_net(), "0"), SGD_OF_NET, 2),  # type: ignore[arg-type]
        "model is a FrozenPart; expected an nn.Module",
    ),
    "no optimizer": (lambda: Accumulator(NET, 0.1, 2), "optimizer is 0.1; expected a torch.optim"),  # type: ignore[arg-type]
    "a wrapped optimizer": (
        lambda: Accumulator(NET, SimpleNamespace(optimizer=SGD_OF_NET), 2),  # type: ignore[arg-type]
        "pass what it wraps: optimizer.optimizer",
    ),
    "swapped": (lambda: Accumulator(SGD_OF_NET, NET, 2), "model is a SGD"),  # type: ignore[arg-type]
    "another model's optimizer": (
        lambda: Accumulator(NET, SGD(batch_norm_net().parameters(), lr=0.1), 2),
        "has none of the model's parameters",
    ),
    "lbfgs": (lambda: Accumulator(NET, LBFGS(NET.parameters()), 2), "LBFGS computes the loss aga"),
    "exact": (
        lambda: Accumulator(NET, SGD_OF_NET, 2, batchnorm="exact"),  # type: ignore[arg-type]
        "needs all microbatches of a window at once.*fl.accumulate",
    ),
    "batchnorm": (
        lambda: Accumulator(NET, SGD_OF_NET, 2, batchnorm="sync"),  # type: ignore[arg-type]
        "batchnorm='sync': expected 'deferred', 'compensated' or 'plain'",
    ),
    "norm 0": (lambda: Accumulator(NET, SGD_OF_NET, 2, max_grad_norm=0), "max_grad_norm=0"),
    "norm nan": (
        lambda: Accumulator(NET, SGD_OF_NET, 2, max_grad_norm=float("nan")),
        "max_grad_norm=nan",
    ),
    "no scaler": (lambda: Accumulator(NET, SGD_OF_NET, 2, scaler=True), "scaler is True; expected"),  # type: ignore[arg-type]
    "somebody's scaler": (
        lambda: Accumulator(
            NET,
            SGD_OF_NET,
            2,
            scaler=SimpleNamespace(scale=id, unscale_=id, step=id, update=id),  # type: ignore[arg-type]
        ),
        "scaler is a SimpleNamespace; expected a torch.amp.GradScaler",
    ),
    "plateau": (
        lambda: Accumulator(NET, SGD_OF_NET, 2, scheduler=ReduceLROnPlateau(SGD_OF_NET)),
        "ReduceLROnPlateau, whose step needs a metric",
    ),
    "no scheduler": (lambda: Accumulator(NET, SGD_OF_NET, 2, scheduler=0.9), "scheduler is 0.9"),
    "a tensor for a loader": (
        lambda: Accumulator(NET, SGD_OF_NET, 2).iterate(X),
        r"iterate\(loader\) got a Tensor; expected what gives one microbatch after the other",
    ),
    "a dict for a loader": (lambda: Accumulator(NET, SGD_OF_NET, 2).iterate({"x": X}), "a dict"),
    "no loader": (lambda: Accumulator(NET, SGD_OF_NET, 2).iterate(7), "got a int"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_wrong_arguments(name: str) -> None:
    call, message = ARGUMENTS[name]
    with pytest.raises(AccumulationError, match=message):
        call()


def test_more_parameters_than_the_model_has_are_fine_and_so_are_fewer() -> None:
    criterion = nn.Linear(1, 1).double()
    Accumulator(NET, Adam([*NET.parameters(), *criterion.parameters()]), 2)
    Accumulator(NET, Adam(NET[3].parameters()), 2)


LOSSES: dict[str, tuple[Callable[[], Any], str]] = {
    "a number": (lambda: 0.3, "got a float; expected the loss, a scalar tensor"),
    "an output": (
        lambda: SimpleNamespace(loss=NET(X).mean()),
        r"acc\.backward\(model\(\*\*batch\)\.loss\)",
    ),
    "not reduced": (lambda: NET(X), r"got a tensor \[3, 4\] of torch.float64; expected one float"),
    "a count": (lambda: torch.tensor(3), r"got a tensor \[\] of torch.int64"),
    "detached": (lambda: NET(X).mean().detach(), r"without a gradient: no trainable .*detach"),
}
ITEMS: dict[str, tuple[Any, str]] = {
    "zero": (0, "items=0: .*if not items: continue"),
    "no label that counts": ((torch.tensor([-100]) != -100).sum(), "items=0"),
    "negative": (-1, "items=-1: expected over how many items the loss is a mean"),
    "half": (1.5, "items=1.5"),
    "nan": (float("nan"), "items=nan"),
    "infinite": (float("inf"), "items=inf"),
    "true": (True, "items=True"),
    "none": (None, "items=None"),
    "text": ("3", "items='3'"),
    "labels": (torch.ones(3), r"items=a tensor \[3\]: .*items=len\(y\)"),
}


def one_microbatch() -> tuple[Accumulator, nn.Module]:
    model = batch_norm_net()
    return Accumulator(model, SGD(model.parameters(), lr=0.1), 1), model


@pytest.mark.parametrize("name", LOSSES)
def test_wrong_losses(name: str) -> None:
    make, message = LOSSES[name]
    acc, model = one_microbatch()
    with acc.microbatch():
        with pytest.raises(AccumulationError, match=message):
            acc.backward(make())
        # What is refused before anything happened may be given again.
        acc.backward(model(X).mean())
    assert acc.steps == 1


@pytest.mark.parametrize("name", ITEMS)
def test_wrong_items(name: str) -> None:
    items, message = ITEMS[name]
    acc, model = one_microbatch()
    with acc.microbatch():
        with pytest.raises(AccumulationError, match=message):
            acc.backward(model(X).mean(), items=items)
        acc.backward(model(X).mean(), items=torch.tensor([3.0]))
    assert acc.steps == 1


def test_gradients_are_disabled() -> None:
    acc, model = one_microbatch()
    with (
        torch.no_grad(),
        acc.microbatch(),
        pytest.raises(AccumulationError, match=r"gradients are disabled here.*no_grad"),
    ):
        acc.backward(model(X).mean())


def test_backward_has_its_place() -> None:
    acc, model = one_microbatch()
    message = r"once in each microbatch, inside of `for batch in acc\.iterate"
    with pytest.raises(AccumulationError, match=message):
        acc.backward(model(X).mean())
    with acc.microbatch():
        acc.backward(model(X).mean())
        with pytest.raises(AccumulationError, match=r"Several losses .*acc\.backward\(a \+ b\)"):
            acc.backward(model(X).mean())
    for x in acc.iterate([X]):
        acc.backward(model(x).mean())
    with pytest.raises(AccumulationError, match=message):
        acc.backward(model(X).mean())


def test_microbatches_are_not_nested() -> None:
    acc, _ = one_microbatch()
    with (
        acc.microbatch(),
        pytest.raises(AccumulationError, match="is open already"),
        acc.microbatch(),
    ):
        pass


def test_one_element_with_a_shape_is_a_scalar() -> None:
    acc, model = one_microbatch()
    with acc.microbatch():
        loss: Tensor = acc.backward(model(X).mean().reshape(1))
    assert loss.shape == (1,)
    assert acc.loss == pytest.approx(float(loss))
