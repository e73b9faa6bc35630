"""Loops that are left with an open window: by `break`, by an exception, by the end of it all."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from frostline.accumulation.accumulator import Accumulator
from frostline.errors import FrostlineWarning
from tests.accumulation.own_loop import loops as accumulator_loops
from tests.accumulation.own_loop.loops import (
    accumulator,
    batch_norm_net,
    inputs,
    is_untouched,
    layer_norm_net,
    train,
)


@pytest.mark.parametrize("batchnorm", ["deferred", "compensated", "plain"])
def test_a_first_batch_left_out_opens_no_window(batchnorm: str) -> None:
    """What is loaded then is what a discarded window goes back to."""
    model, loaded = batch_norm_net(), batch_norm_net(1)
    acc = accumulator(model, batchnorm=batchnorm)
    with acc.microbatch():
        model(inputs(1)[0])
    model.load_state_dict(loaded.state_dict())
    train(acc, model, inputs(2), until=0)
    acc.discard()
    assert all(map(torch.equal, model.buffers(), loaded.buffers()))


def test_a_loop_left_early_leaves_its_window_open_and_the_next_goes_on_in_it() -> None:
    model, batches = layer_norm_net(), inputs(5)
    acc = accumulator(model)
    train(acc, model, batches, until=1)
    assert (acc.pending, acc.steps) == (2, 0)
    assert is_untouched(model)
    with pytest.warns(FrostlineWarning, match=r"open window \(2 of 3 microbatches\)") as told:
        train(acc, model, batches[2:])
    assert told[0].filename == accumulator_loops.__file__
    assert (acc.pending, acc.steps) == (0, 2)


def test_flush_and_discard_between_loops_say_what_is_meant() -> None:
    model = layer_norm_net()
    acc = accumulator(model)
    for act, steps in ((acc.flush, 1), (acc.discard, 1)):
        train(acc, model, inputs(3), until=0)
        act()
        assert (acc.pending, acc.steps) == (0, steps)
    train(acc, model, inputs(3))  # no warning
    assert acc.steps == 2


def test_discard_brings_back_what_was_before() -> None:
    model = batch_norm_net()
    model(torch.ones(3, 6).double()).sum().backward()
    grads = [p.grad for p in model.parameters()]
    values = [g.clone() for g in grads if g is not None]
    buffers = [b.clone() for b in model.buffers()]
    for batchnorm in ("deferred", "compensated", "plain"):
        acc = accumulator(model, 4, batchnorm=batchnorm)
        with pytest.warns(FrostlineWarning, match="from before the window"):
            train(acc, model, inputs(4), until=2)
        acc.discard()
        assert all(p.grad is g for p, g in zip(model.parameters(), grads, strict=True))
        assert all(map(torch.equal, (p.grad for p in model.parameters()), values))
        assert all(map(torch.equal, model.buffers(), buffers))


def test_flush_of_nothing_is_nothing() -> None:
    model = layer_norm_net()
    acc = accumulator(model)
    acc.flush()
    acc.discard()
    assert acc.steps == 0


def test_an_accumulator_that_dies_with_an_open_window_warns() -> None:
    model = batch_norm_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.warns(FrostlineWarning, match="1 of 3 microbatches were never stepped"):
        train(Accumulator(model, optimizer, 3), model, inputs(3), until=0)
    assert is_untouched(model)
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()  # nobody is in the way


@pytest.mark.slow
def test_a_script_that_ends_with_an_open_window_is_told() -> None:
    script = """
import torch, frostline as fl
net = torch.nn.Linear(2, 2)
acc = fl.Accumulator(net, torch.optim.SGD(net.parameters(), lr=0.1), 4)
for x in acc.iterate(torch.ones(5, 3, 2).unbind()):
    acc.backward(net(x).mean())
    if acc.pending == 2:
        break
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert "2 of 4 microbatches were never stepped" in run.stderr


def test_an_accumulator_that_dies_otherwise_says_nothing() -> None:
    model = layer_norm_net()
    train(accumulator(model), model, inputs(4))
    gc.collect()


class Breaks(nn.Module):
    """Raises in its forward, after a norm, when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.error = batch_norm_net(), None  # type: BaseException | None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        if self.error is not None:
            raise self.error
        return y


def breaking(model: Breaks, error: BaseException) -> Iterator[Tensor]:
    for k, x in enumerate(inputs(5)):
        # The batch before this one is used only after this line.
        model.error = error if k == 2 else None
        yield x


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()], ids=["error", "^C"])
@pytest.mark.parametrize("batchnorm", ["deferred", "compensated", "plain"])
def test_an_exception_in_a_forward_leaves_nothing_behind(error: Any, batchnorm: str) -> None:
    model = Breaks()
    acc = accumulator(model, batchnorm=batchnorm)
    buffers = [b.clone() for b in model.buffers()]
    with pytest.raises(type(error)) as caught:
        train(acc, model, breaking(model, error))
    # The traceback keeps the loop's frame, and so the generator, alive.
    assert caught.traceback
    assert torch._C._len_torch_function_stack() == 0
    assert torch.get_default_dtype() is torch.float32
    assert acc.pending == 1
    acc.discard()
    assert is_untouched(model)
    assert all(map(torch.equal, model.buffers(), buffers))
    model.error = None
    train(acc, model, inputs(3))
    assert acc.steps == 1


def test_an_exception_in_a_backward_discards_the_window() -> None:
    model = batch_norm_net()
    acc = accumulator(model)
    buffers = [b.clone() for b in model.buffers()]

    calls = []

    def refuse(gradient: Tensor) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no gradient today")

    model[3].weight.register_hook(refuse)

    with pytest.raises(ValueError, match="no gradient today") as caught:
        train(acc, model, inputs(3))
    assert "window of the Accumulator was discarded" in caught.value.__notes__[0]
    assert acc.pending == 0
    assert is_untouched(model)
    assert all(p.grad is None for p in model.parameters())
    assert all(map(torch.equal, model.buffers(), buffers))


def test_a_microbatch_that_raises_does_not_count() -> None:
    model = batch_norm_net()
    acc = accumulator(model, 2)
    for k, x in enumerate(inputs(3)):
        try:
            with acc.microbatch():
                out = model(x)
                if k == 1:
                    raise MemoryError
                acc.backward(out.mean())
        except MemoryError:
            assert is_untouched(model)
    assert (acc.steps, acc.pending) == (1, 0)
    assert int(model[1].num_batches_tracked) == 8
