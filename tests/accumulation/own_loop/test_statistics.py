"""Running statistics in one's own loop, whichever way the model is called in it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from frostline.accumulation.accumulator import Accumulator
from frostline.accumulation.own_loop.surrounding import surrounding
from frostline.accumulation.statistics.running_statistics import policy
from frostline.errors import FrostlineWarning
from tests.accumulation.own_loop.loops import batch_norm_net, microbatches, windows
from tests.zoo import ZOO, fresh

SIZES = [5, 3, 2, 4, 6, 2, 3]
Forward = Callable[[nn.Module, Tensor], Tensor]


def inputs(sizes: list[int] = SIZES) -> list[Tensor]:
    return [x for x, _ in microbatches(sizes)]


def accumulated(
    model: nn.Module, xs: list[Tensor], forward: Forward, count: int = 3, **options: Any
) -> nn.Module:
    """A loop whose steps change nothing but statistics."""
    acc = Accumulator(model, SGD(model.parameters(), lr=0.0), count, **options)
    for x in acc.iterate(xs):
        acc.backward(forward(model, x).square().mean(), items=len(x))
    return model


def in_big_batches(model: nn.Module, xs: list[Tensor], forward: Forward) -> nn.Module:
    for window in windows(xs, 3):
        forward(model, torch.cat(list(window)))
    return model


def once(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = model(x)
    return y


def twice(model: nn.Module, x: Tensor) -> Tensor:
    """As a discriminator is called, with what is real and what is not."""
    return once(model, x) - once(model, 3 * x.sin())


def part_by_part(model: nn.Module, x: Tensor) -> Tensor:
    for part in model.children():
        x = part(x)
    return x


def twice_part_by_part(model: nn.Module, x: Tensor) -> Tensor:
    return part_by_part(model, x) - part_by_part(model, 3 * x.sin())


def checkpointed(model: nn.Module, x: Tensor) -> Tensor:
    y: Tensor = checkpoint(model, x.clone().requires_grad_(), use_reentrant=False)
    return y


WAYS = {f.__name__: f for f in (once, twice, part_by_part, twice_part_by_part, checkpointed)}


def assert_statistics(found: nn.Module, true: nn.Module, limit: float) -> None:
    for (name, here), there in zip(found.named_buffers(), true.buffers(), strict=True):
        if not here.is_floating_point():
            assert torch.equal(here, there), name
        assert float((here - there).abs().max()) <= limit, name


@pytest.mark.parametrize("momentum", [0.1, None, 1.0])
@pytest.mark.parametrize("way", WAYS)
def test_deferred_statistics_are_those_of_the_big_batch(way: str, momentum: float | None) -> None:
    """The norm comes first, so that its inputs are those of the big batch."""
    models = [batch_norm_net() for _ in range(2)]
    for model in models:
        model[1].momentum = momentum
    accumulated(models[0], inputs(), WAYS[way])
    # torch itself would update twice with a checkpoint.
    in_big_batches(models[1], inputs(), once if way == "checkpointed" else WAYS[way])
    assert_statistics(*models, limit=1e-13)


def test_compensated_statistics_keep_what_a_big_batch_keeps() -> None:
    model, xs = batch_norm_net(), inputs([4] * 6)
    expected, m = model[1].running_mean.clone(), 1 - 0.9 ** (1 / 3)
    for x in xs:
        expected = (1 - m) * expected + m * model[0](x).detach().mean(0)
    accumulated(model, xs, once, batchnorm="compensated")
    assert float((model[1].running_mean - expected).abs().max()) < 1e-14
    assert int(model[1].num_batches_tracked) == 7 + 6


def test_plain_statistics_are_torchs_own_to_the_bit() -> None:
    models = [batch_norm_net() for _ in range(2)]
    accumulated(models[0], inputs(), twice, batchnorm="plain")
    for x in inputs():
        twice(models[1], x)
    assert_statistics(*models, limit=0.0)


@pytest.mark.parametrize("name", ["mobilenetv3", "two_branches"])
def test_a_real_model_gets_what_the_policy_gives(name: str) -> None:
    entry, models = ZOO[name], [fresh(ZOO[name]) for _ in range(2)]
    batch = entry.batch()
    cut = [tuple(t[k : k + 2] for t in batch) for k in (0, 2)]
    acc = Accumulator(models[0], SGD(models[0].parameters(), lr=0.0), 2)
    torch.manual_seed(4)
    for part in acc.iterate(cut):
        acc.backward(entry.loss(models[0], part))
    statistics = policy("deferred", models[1])
    torch.manual_seed(4)
    for part in cut:
        with statistics.forward(2):
            entry.loss(models[1], part)
    statistics.commit()
    assert_statistics(*models, limit=0.0)
    before = fresh(ZOO[name]).buffers()
    assert not any(map(torch.equal, before, models[0].buffers())), "all of them moved"


# --- what does not belong to the microbatch -------------------------------------------------------


@pytest.mark.parametrize("way", ["once", "twice", "twice_part_by_part"])
def test_a_batch_left_out_after_its_forward_leaves_no_trace(way: str) -> None:
    models = [batch_norm_net() for _ in range(2)]
    broken = [2, 5]
    acc = Accumulator(models[0], SGD(models[0].parameters(), lr=0.0), 3)
    xs = [x * float("nan") if k in broken else x for k, x in enumerate(inputs())]
    for x in acc.iterate(xs):
        loss = WAYS[way](models[0], x).square().mean()
        if not loss.isfinite():
            continue
        acc.backward(loss, items=len(x))
    accumulated(models[1], [x for k, x in enumerate(xs) if k not in broken], WAYS[way])
    assert_statistics(*models, limit=0.0)


class Fails(nn.Module):
    """Its first forward raises, when the norm has seen its input."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.times = batch_norm_net(), 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        self.times += 1
        if self.times == 1:
            raise MemoryError
        return y

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))  # not what nn.Module gives


def test_a_forward_that_is_tried_again_counts_once() -> None:
    models = [Fails(), Fails()]
    models[1].times = 1
    acc = Accumulator(models[0], SGD(models[0].parameters(), lr=0.0), 3)
    for x in acc.iterate(inputs()):
        try:
            loss = models[0](x).square().mean()
        except MemoryError:
            loss = models[0](x).square().mean()
        acc.backward(loss, items=len(x))
    accumulated(models[1], inputs(), once)
    assert_statistics(*models, limit=0.0)


def test_what_follows_the_backward_is_none_of_the_microbatchs_business() -> None:
    models = [batch_norm_net() for _ in range(2)]
    acc = Accumulator(models[0], SGD(models[0].parameters(), lr=0.0), 7)
    for x in acc.iterate(inputs()):
        acc.backward(models[0](x).square().mean(), items=len(x))
        models[0].eval()(2 * x)
        models[0].train()
    accumulated(models[1], inputs(), once, 7)
    assert_statistics(*models, limit=0.0)


def test_another_model_trains_as_ever_meanwhile() -> None:
    generator, judge, alone = (batch_norm_net() for _ in range(3))
    acc = Accumulator(judge, SGD(judge.parameters(), lr=0.0), 3)
    for x in acc.iterate(inputs()):
        generator(x)
        acc.backward(twice(judge, x).square().mean())
        alone(x)
    assert_statistics(generator, alone, limit=0.0)
    assert int(alone[1].num_batches_tracked) == 7 + 7
    assert int(judge[1].num_batches_tracked) == 7 + 2 * 3


@pytest.mark.parametrize("make", [batch_norm_net, Fails])
def test_a_copy_made_inside_of_a_microbatch_is_on_its_own(make: Callable[[], nn.Module]) -> None:
    model: Any = make()
    model.times = 1
    acc = Accumulator(model, SGD(model.parameters(), lr=0.0), 2)
    with acc.microbatch():
        copies = [deepcopy(model), pickle.loads(pickle.dumps(model))]
        assert all(m._compiled_call_impl is None for c in copies for m in c.modules())
        for copied in copies:
            copied(inputs()[0])
            assert counted(copied) == 8
        acc.backward(model(inputs()[0]).mean())
    acc.flush()
    assert counted(model) == 8


def counted(model: nn.Module) -> int:
    (counter,) = (b for b in model.buffers() if not b.is_floating_point())
    return int(counter)


def test_the_state_dict_between_microbatches_is_that_of_before() -> None:
    model = batch_norm_net()
    before = deepcopy(model.state_dict())
    acc = Accumulator(model, SGD(model.parameters(), lr=0.1), 9)
    for x in acc.iterate(inputs()):
        acc.backward(model(x).mean())
        if acc.pending:
            assert all(map(torch.equal, model.state_dict().values(), before.values()))
    assert int(model[1].num_batches_tracked) == 8


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_models(how: str) -> None:
    models = [batch_norm_net() for _ in range(2)]
    if how == "in place":
        models[0].compile(backend="eager")
        run = models[0]
    else:
        run = torch.compile(models[0], backend="eager")  # type: ignore[assignment]
    with pytest.warns(FrostlineWarning, match="runs as if it were not compiled") as told:
        accumulated(run, inputs(), once)
    assert told[0].filename == __file__
    accumulated(models[1], inputs(), once)
    assert_statistics(*models, limit=1e-14)
    assert (models[0]._compiled_call_impl is not None) == (how == "in place")


def test_half_precision_by_autocast_is_torchs_own_to_the_bit() -> None:
    models = [batch_norm_net().float() for _ in range(2)]
    optimizers = [SGD(model.parameters(), lr=0.1) for model in models]
    acc = Accumulator(models[0], optimizers[0], 1)
    for x in acc.iterate(inputs()):
        with torch.autocast("cpu", torch.bfloat16):
            loss = models[0](x.float()).square().mean()
        acc.backward(loss)
        with torch.autocast("cpu", torch.bfloat16):
            loss = models[1](x.float()).square().mean()
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
    assert all(map(torch.equal, *(model.parameters() for model in models)))
    assert_statistics(*models, limit=1e-6)


def test_a_module_is_called_as_before_whoever_goes_first() -> None:
    net = nn.Identity()
    first, second = (surrounding([net], nullcontext) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert net(3) == 3
