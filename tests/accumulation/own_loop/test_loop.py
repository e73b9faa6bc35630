"""The loop: what is read ahead, what a `continue` leaves out, loops that it does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD
from torch.utils.data import DataLoader, IterableDataset

from frostline.errors import AccumulationError, FrostlineWarning
from tests.accumulation.own_loop.loops import (
    accumulator,
    assert_close,
    by_big_batches,
    cross_entropy,
    inputs,
    is_untouched,
    layer_norm_net,
    microbatches,
    step,
    train,
    windows,
)

# --- iterables ------------------------------------------------------------------------------------


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.ones(7, 6).double())


LOADERS: dict[str, tuple[Any, int | None]] = {
    "list": (inputs(7), 7),
    "generator": ((x for x in inputs(7)), None),
    "loader": (DataLoader(torch.ones(7, 6).double(), batch_size=1), 7),  # type: ignore[arg-type]
    "iterable dataset": (DataLoader(Endless(), batch_size=1), None),
}


@pytest.mark.parametrize("name", LOADERS)
def test_every_batch_is_given_once_and_in_order(name: str) -> None:
    loader, length = LOADERS[name]
    model = layer_norm_net()
    acc = accumulator(model)
    iteration = acc.iterate(loader)
    if length is None:
        with pytest.raises(TypeError, match=r"no len|has no"):
            len(iteration)
    else:
        assert len(iteration) == length
    steps = []
    for x in iteration:
        step(acc, model, x)
        steps.append(acc.steps)
    assert steps == [0, 0, 1, 1, 1, 2, 3]
    assert is_untouched(model)


@pytest.mark.parametrize("loader", [[], iter(()), DataLoader([])], ids=["list", "iterator", "dl"])
def test_an_empty_loader_steps_nothing(loader: Any) -> None:
    acc = accumulator(layer_norm_net())
    assert list(acc.iterate(loader)) == []
    assert acc.steps == 0


def test_an_iteration_is_as_often_iterable_as_its_loader() -> None:
    model = layer_norm_net()
    acc = accumulator(model)
    epochs = acc.iterate(inputs(4))
    for _ in range(3):
        for x in epochs:
            step(acc, model, x)
    assert acc.steps == 6


def test_one_batch_is_read_ahead_and_no_more() -> None:
    read: list[int] = []

    def loader() -> Iterator[Tensor]:
        for k, x in enumerate(inputs(5)):
            read.append(k)
            yield x

    model = layer_norm_net()
    acc = accumulator(model)
    for k, x in enumerate(acc.iterate(loader())):
        assert len(read) == min(k + 2, 5)
        step(acc, model, x)


def test_a_loader_that_fails_fails_after_the_batch_before() -> None:
    def loader() -> Iterator[Tensor]:
        yield from inputs(2)
        raise OSError("the disk is gone")

    model = layer_norm_net()
    acc = accumulator(model)
    with pytest.raises(OSError, match="the disk is gone"):
        train(acc, model, loader())
    assert acc.pending == 2
    acc.flush()
    assert acc.steps == 1


# --- what is left out, what is left ---------------------------------------------------------------


@pytest.mark.parametrize("skipped", [(0,), (1,), (2, 3), (6,), (5, 6), (1, 2, 3, 4, 5, 6)], ids=str)
def test_a_batch_left_without_a_backward_does_not_count(skipped: Any) -> None:
    batches = microbatches([3, 2, 4, 1, 2, 5, 3])
    models = [layer_norm_net() for _ in range(2)]
    acc = accumulator(models[0])
    for k, batch in enumerate(acc.iterate(batches)):
        loss = cross_entropy(models[0], batch)
        if k not in skipped:
            acc.backward(loss, items=(batch[1] != -100).sum())
    kept = [batch for k, batch in enumerate(batches) if k not in skipped]
    true = by_big_batches(models[1], SGD(models[1].parameters(), lr=0.1), kept, 3)
    assert acc.steps == len(list(windows(kept, 3)))
    assert_close([p.detach() for p in models[0].parameters()], true.parameters, 1e-13)


def test_a_loop_that_goes_backward_by_itself_is_told() -> None:
    model = layer_norm_net()
    acc = accumulator(model)

    def by_itself() -> None:
        for x in acc.iterate(inputs(4)):
            model(x).mean().backward()

    with pytest.warns(FrostlineWarning, match=r"gave 4 microbatches.*Write acc\.back") as told:
        by_itself()
    assert told[0].filename == __file__
    assert list(acc.iterate([])) == []  # nothing was given, nothing is to be told


def test_a_loop_inside_of_a_loop_ends_the_outer_one() -> None:
    model = layer_norm_net()
    acc = accumulator(model)

    def nested() -> None:
        for _ in acc.iterate(inputs(2)):
            train(acc, model, inputs(3))

    with pytest.raises(AccumulationError, match=r"another loop over acc\.iterate"):
        nested()
    assert acc.steps == 1
    assert is_untouched(model)


# --- loops that iterate does not fit --------------------------------------------------------------


def test_microbatch_by_microbatch() -> None:
    batches = microbatches([3, 2, 4, 1, 2])
    models = [layer_norm_net() for _ in range(2)]
    acc = accumulator(models[0])
    for batch in batches:
        with acc.microbatch():
            acc.backward(cross_entropy(models[0], batch), items=(batch[1] != -100).sum())
    acc.flush()
    true = by_big_batches(models[1], SGD(models[1].parameters(), lr=0.1), batches, 3)
    assert_close([p.detach() for p in models[0].parameters()], true.parameters, 1e-13)


def test_who_knows_better_says_which_microbatch_is_the_last() -> None:
    """Windows of 2 and of 5, longer and shorter than announced."""
    batches = microbatches([3, 2, 4, 1, 2, 5, 3])
    models = [layer_norm_net() for _ in range(2)]
    acc = accumulator(models[0])
    for k, batch in enumerate(batches):
        with acc.microbatch(last=k in (1, 6)):
            acc.backward(cross_entropy(models[0], batch), items=(batch[1] != -100).sum())
    assert acc.steps == 2
    optimizer = SGD(models[1].parameters(), lr=0.1)
    by_big_batches(models[1], optimizer, batches[:2], 2)
    true = by_big_batches(models[1], optimizer, batches[2:], 5)
    assert_close([p.detach() for p in models[0].parameters()], true.parameters, 1e-13)
