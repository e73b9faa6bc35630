"""The step at the end of a window: scaler, scheduler, clipping, and who else may step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from frostline.accumulation.accumulator import Accumulator
from frostline.errors import AccumulationError
from tests.accumulation.own_loop.loops import (
    assert_close,
    batch_norm_net,
    by_accumulator,
    by_big_batches,
    cross_entropy,
    layer_norm_net,
    microbatches,
)

OPTIMIZERS: dict[str, Callable[[Iterable[Tensor]], Optimizer]] = {
    "sgd": partial(SGD, lr=0.1, momentum=0.9),
    "adam": partial(Adam, lr=0.01),
    "adam fused": partial(Adam, lr=0.01, fused=True),
}
SIZES = [3, 2, 4, 2, 2, 5, 3, 2]


def inputs(sizes: list[int] = SIZES) -> list[Tensor]:
    return [x for x, _ in microbatches(sizes)]


def train(acc: Accumulator, model: nn.Module, xs: Iterable[Tensor], spoil: Any = ()) -> list[int]:
    """The loop; the losses of microbatches ``spoil`` are infinite. How many windows were made."""
    windows = []
    for k, x in enumerate(acc.iterate(xs)):
        loss = model(x).square().mean()
        acc.backward(loss * float("inf") if k in spoil else loss, items=len(x))
        windows.append(acc.steps + acc.skipped)
    return windows


# --- scaler ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("max_grad_norm", [None, 0.2])
def test_a_scaler_changes_nothing_in_what_is_stepped(name: str, max_grad_norm: Any) -> None:
    runs = []
    for train_it in (by_accumulator, by_big_batches):
        model = layer_norm_net()
        optimizer = OPTIMIZERS[name](model.parameters())
        scaler = GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        options = {"scaler": scaler} if train_it is by_accumulator else {}
        runs.append(
            train_it(  # type: ignore[operator]
                model, optimizer, microbatches(SIZES), 3, max_grad_norm=max_grad_norm, **options
            )
        )
        if options:
            assert scaler.get_scale() == 2.0**11, "updated once a window"
    assert runs[0].losses == pytest.approx(runs[1].losses, rel=1e-13)
    assert_close(runs[0].parameters, runs[1].parameters, 1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("max_grad_norm", [None, 0.2])
@pytest.mark.parametrize("batchnorm", ["deferred", "compensated", "plain"])
def test_a_skipped_window_leaves_no_trace(name: str, max_grad_norm: Any, batchnorm: Any) -> None:
    """The second window of three overflows."""
    model = batch_norm_net()
    optimizer = OPTIMIZERS[name](model.parameters())
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    scaler = GradScaler("cpu", init_scale=4.0)
    acc = Accumulator(
        model,
        optimizer,
        3,
        batchnorm=batchnorm,
        max_grad_norm=max_grad_norm,
        scaler=scaler,
        scheduler=scheduler,
    )
    xs = inputs()
    train(acc, model, xs[:3])
    before = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    train(acc, model, xs[3:6], spoil=[1])
    after = [t.detach() for t in (*model.parameters(), *model.buffers())]
    assert all(map(torch.equal, after, before))
    assert (acc.steps, acc.skipped, scaler.get_scale()) == (1, 1, 2.0)
    assert scheduler.get_last_lr() == [optimizer.defaults["lr"] * 0.5]
    assert all(p.grad is None for p in model.parameters())
    train(acc, model, xs[6:])
    assert (acc.steps, acc.skipped) == (2, 1)
    assert not all(map(torch.equal, after, before))


def test_a_scaler_that_is_off_is_none() -> None:
    model = layer_norm_net()
    scaler = GradScaler("cpu", enabled=False)
    acc = Accumulator(model, SGD(model.parameters(), lr=0.1), 3, scaler=scaler)
    with pytest.raises(AccumulationError, match=r"microbatch 1 \(from 0\) of the window is inf"):
        train(acc, model, inputs(), spoil=[1])


# --- no scaler ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batchnorm", ["deferred", "compensated", "plain"])
def test_without_a_scaler_a_loss_that_is_no_number_is_an_error(batchnorm: Any) -> None:
    model = batch_norm_net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    acc = Accumulator(model, optimizer, 4, batchnorm=batchnorm)
    train(acc, model, inputs()[:4])
    before = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    with pytest.raises(AccumulationError, match=r"microbatch 2 \(from 0\).*is inf.*continue"):
        train(acc, model, inputs()[4:], spoil=[2])
    assert all(map(torch.equal, (*model.parameters(), *model.buffers()), before))
    assert all(p.grad is None for p in model.parameters())
    assert (acc.steps, acc.skipped, acc.pending) == (1, 0, 0)
    train(acc, model, inputs()[4:])
    assert acc.steps == 2


def test_without_a_scaler_a_gradient_that_is_no_number_is_an_error_if_clipped() -> None:
    model = layer_norm_net()
    acc = Accumulator(model, SGD(model.parameters(), lr=0.1), 2, max_grad_norm=1.0)
    before = [p.detach().clone() for p in model.parameters()]
    with (
        pytest.raises(AccumulationError, match="norm of nan"),
        acc.microbatch(last=True),
    ):
        # The square root of 0 has an infinite slope.
        acc.backward((model(inputs()[0]) * 0).sqrt().mean())
    assert all(map(torch.equal, (p.detach() for p in model.parameters()), before))
    assert all(p.grad is None for p in model.parameters())


def test_no_gradient_for_the_optimizer_is_an_error() -> None:
    model = layer_norm_net()
    acc = Accumulator(model, SGD(model[3].parameters(), lr=0.1), 2)
    with (
        pytest.raises(AccumulationError, match="no parameter of the optimizer got a gradient"),
        acc.microbatch(last=True),
    ):
        acc.backward(model[:3](inputs()[0]).mean())


# --- scheduler, and what else steps ---------------------------------------------------------------


def test_the_scheduler_steps_once_a_window() -> None:
    model = layer_norm_net()
    optimizer = SGD(model.parameters(), lr=1.0)
    scheduler = LambdaLR(optimizer, lambda step: 0.5**step)
    acc = Accumulator(model, optimizer, 3, scheduler=scheduler)
    rates = []
    for x in acc.iterate(inputs()):
        acc.backward(model(x).mean())
        rates += scheduler.get_last_lr()
    assert rates == [1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]


def test_a_step_of_somebody_else_in_an_open_window_is_an_error() -> None:
    model = layer_norm_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    acc = Accumulator(model, optimizer, 3)
    optimizer.step()
    for k, x in enumerate(acc.iterate(inputs())):
        acc.backward(model(x).mean())
        if acc.pending:
            with pytest.raises(AccumulationError, match=r"acc\.backward steps.*out of your loop"):
                optimizer.step()
        elif k == 2:
            optimizer.step()  # between windows it is nobody's business
    optimizer.step()
    assert acc.steps == 3


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_are_zeroed_in_an_open_window_are_an_error(set_to_none: bool) -> None:
    model = layer_norm_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    acc = Accumulator(model, optimizer, 3)

    def loop() -> None:
        for x in acc.iterate(inputs()):
            optimizer.zero_grad(set_to_none)
            acc.backward(model(x).mean())

    with pytest.raises(AccumulationError, match=r"cleared, by optimizer\.zero_grad"):
        loop()
    assert acc.pending == 0


def test_gradients_that_grow_otherwise_are_none() -> None:
    """A near miss: an own backward beside it is allowed, and a part of the window."""
    model = layer_norm_net()
    acc = Accumulator(model, SGD(model.parameters(), lr=0.1), 3)
    for x in acc.iterate(inputs()):
        acc.backward(model(x).mean())
        if acc.pending == 1:
            model[0].weight.square().sum().backward()  # the first that is looked at
    assert acc.steps == 3


def test_two_optimizers_take_turns() -> None:
    """A generator's loss goes through the judge, whose parameters are not its business."""
    generator, judge = layer_norm_net(1), nn.Linear(4, 1).double()
    makes = Accumulator(generator, SGD(generator.parameters(), lr=0.1), 2)
    judges = Accumulator(judge, SGD(judge.parameters(), lr=0.1), 2)
    for x in judges.iterate(inputs()):
        judges.backward(judge(generator(x).detach()).square().mean())
        judge.requires_grad_(False)
        with makes.microbatch():
            makes.backward(judge(generator(x)).mean())
        judge.requires_grad_(True)
    assert (judges.steps, makes.steps) == (4, 4)
    assert makes.loss is not None


def test_parameters_of_a_criterion_are_stepped_and_weighed_too() -> None:
    batches, found = microbatches(SIZES), []
    for train_it in (by_accumulator, by_big_batches):
        model, scale = layer_norm_net(), nn.Parameter(torch.tensor(1.5).double())

        def loss(model: nn.Module, batch: Any, scale: Tensor = scale) -> Tensor:
            return cross_entropy(lambda x: model(x) * scale, batch)  # type: ignore[arg-type]

        optimizer = SGD([*model.parameters(), scale], lr=0.1)
        train_it(model, optimizer, batches, 3, loss=loss)  # type: ignore[operator]
        found.append([scale.detach(), *(p.detach() for p in model.parameters())])
    assert_close(*found, 1e-13)
