"""Microbatches one after the other: against the big batch where that is exact, and undone."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline._state import same_bits
from frostline.accumulation.one_by_one import one_by_one
from frostline.accumulation.splitting import split
from frostline.accumulation.statistics.running_statistics import policy
from frostline.accumulation.weighing import counts, weights
from frostline.errors import AccumulationError
from tests.accumulation.statistics.truth import POLICIES, same_state, state
from tests.zoo import ZOO, classify, fresh

Loss = Callable[[nn.Module, Any], Tensor]


def run(
    model: nn.Module,
    loss: Loss,
    microbatches: list[Any],
    *,
    batchnorm: Any = "deferred",
    items: Any = None,
    backward: Any = None,
) -> Tensor:
    shares = weights(counts(microbatches, items))
    return one_by_one(model, loss, microbatches, shares, policy(batchnorm, model), backward)


def images(count: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(count, 3, 32, 32, generator=draw, dtype=torch.float64) * 1.5 + 0.4
    return x, torch.randint(5, (count,), generator=draw)


def grads(model: nn.Module) -> list[Tensor | None]:
    return [p.grad for p in model.parameters()]


def assert_close(found: nn.Module, expected: nn.Module) -> None:
    for a, b in zip(grads(found), grads(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3])
def test_with_held_norms_it_is_the_big_batch_whatever_the_sizes(size: int) -> None:
    model = fresh(ZOO["resnet18"]).double()
    fl.freeze(model, nn.BatchNorm2d)
    big, batch = copy.deepcopy(model), images(5)
    big_loss = classify(big, batch)
    big_loss.backward()
    loss = run(model, classify, split(batch, size=size), batchnorm="plain")
    torch.testing.assert_close(loss, big_loss.detach(), rtol=1e-12, atol=0)
    assert not loss.requires_grad
    assert_close(model, big)


def masked(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    tokens, labels = batch
    losses = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="none")
    return losses.sum() / (labels >= 0).sum()


def tokens() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 9)).double()
    labels = torch.randint(9, (8, 5))
    labels[labels < 4] = -100
    labels[2:4] = -100
    return net, (torch.randint(9, (8, 5)), labels)


def test_tokens_weigh_and_a_microbatch_without_any_counts_for_nothing() -> None:
    """Its mean is NaN, and so would be its gradients."""
    net, batch = tokens()
    big = copy.deepcopy(net)
    big_loss = masked(big, batch)
    big_loss.backward()
    for size in (2, 3):
        net.zero_grad()
        loss = run(net, masked, split(batch, size=size), items=lambda b: (b[1] >= 0).sum())
        torch.testing.assert_close(loss, big_loss.detach(), rtol=1e-13, atol=0)
        assert_close(net, big)
    net.zero_grad()
    run(net, masked, split(batch, size=3), items=lambda b: 1)
    assert not torch.allclose(net[1].bias.grad, big[1].bias.grad, rtol=1e-3)


def test_a_mean_over_nothing_does_not_poison_the_gradients() -> None:
    """Weight 0 times a gradient that is NaN would be NaN."""
    net = nn.Linear(3, 1)
    x, mask = torch.randn(4, 3), torch.tensor([1.0, 1.0, 0.0, 0.0])

    def compute_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, counted = batch
        return (model(inputs).squeeze(1).square() * counted).sum() / counted.sum()

    run(net, compute_loss, split((x, mask), size=2), items=lambda b: b[1].sum())
    expected = torch.autograd.grad(compute_loss(net, (x, mask)), net.weight)[0]
    torch.testing.assert_close(net.weight.grad, expected)


def test_gradients_of_before_are_added_to() -> None:
    net, batch = tokens()
    masked(net, batch).backward()
    once, before = [g.clone() for g in grads(net)], grads(net)
    run(net, masked, split(batch, size=4), items=lambda b: (b[1] >= 0).sum())
    assert all(a is b for a, b in zip(grads(net), before, strict=True))
    for total, single in zip(grads(net), once, strict=True):
        torch.testing.assert_close(total, 2 * single, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("batchnorm", POLICIES)
def test_the_policy_is_applied_and_committed(batchnorm: Any) -> None:
    entry = ZOO["conv_bn3d"]
    model = fresh(entry).double()
    big, (x, y) = copy.deepcopy(model), entry.batch()
    batch = x.double(), y
    classify(big, batch)
    run(model, classify, split(batch, size=2), batchnorm=batchnorm)
    found, expected = model.backbone[1], big.backbone[1]
    is_equal = torch.allclose(found.running_var, expected.running_var, rtol=1e-13, atol=0)
    assert is_equal is (batchnorm == "deferred")
    assert int(found.num_batches_tracked - expected.num_batches_tracked) == (not is_equal)


def test_the_loss_and_gradients_are_those_of_a_loop_by_hand() -> None:
    entry = ZOO["mobilenetv3"]
    model = fresh(entry)
    by_hand, batch = copy.deepcopy(model), entry.batch()
    torch.manual_seed(5)
    loss = run(model, entry.loss, split(batch, size=2), batchnorm="plain")
    torch.manual_seed(5)
    expected = []
    for microbatch in split(batch, size=2):
        expected.append(entry.loss(by_hand, microbatch))
        (expected[-1] * 0.5).backward()
    assert torch.equal(loss, (expected[0] * 0.5 + expected[1] * 0.5).detach())
    assert all(torch.equal(a, b) for a, b in zip(grads(model), grads(by_hand), strict=True))
    assert same_state(state(model), state(by_hand))


class Everything:
    """All that a window can touch, and whether it is as it was."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.state, self.grads = model, state(model), grads(model)
        self.bits = [None if g is None else g.clone() for g in self.grads]
        self.modes = [m.training for m in model.modules()]
        self.hooks = [list(m._forward_hooks) for m in model.modules()]
        self.random = self._random()

    def _random(self) -> tuple[Any, ...]:
        return random.getstate(), torch.get_rng_state().tolist(), torch.is_grad_enabled()

    def check(self) -> None:
        model = self.model
        assert same_state(state(model), self.state)
        assert all(a is b for a, b in zip(grads(model), self.grads, strict=True))
        for a, b in zip(self.grads, self.bits, strict=True):
            assert a is b is None or (a is not None and b is not None and same_bits(a, b))
        assert [m.training for m in model.modules()] == self.modes
        assert [list(m._forward_hooks) for m in model.modules()] == self.hooks
        assert self._random() == self.random


def meddling(fail: str) -> Loss:
    """Draws, switches, hooks, and at the second microbatch something goes wrong."""
    calls = []

    def compute_loss(model: nn.Module, batch: Any) -> Tensor:
        calls.append(batch)
        random.random()
        loss = classify(model, batch)
        if len(calls) == 2:
            model.eval()
            model.register_forward_hook(lambda *_: None)
            torch.set_grad_enabled(fail == "backward")
            if fail == "forward":
                raise ArithmeticError("in the forward")
            if fail == "loss":
                return torch.full((3,), float(loss))
            loss.register_hook(raise_in_backward)
        return loss

    return compute_loss


def raise_in_backward(grad: Tensor) -> None:
    raise ArithmeticError("in the backward")


@pytest.mark.parametrize("fail", ["forward", "backward", "loss"])
@pytest.mark.parametrize("batchnorm", POLICIES)
def test_after_an_exception_all_is_as_before(batchnorm: Any, fail: str) -> None:
    entry = ZOO["mlp_bn1d"]
    model, batch = fresh(entry), entry.batch()
    entry.loss(model, batch).backward()
    everything, statistics = Everything(model), policy(batchnorm, model)
    with pytest.raises((ArithmeticError, AccumulationError)):
        one_by_one(model, meddling(fail), split(batch, count=2), [0.5, 0.5], statistics)
    everything.check()
    assert statistics.state_dict()["before"] == {}  # no window is open
    one_by_one(model, entry.loss, split(batch, count=2), [0.5, 0.5], statistics)


@pytest.mark.parametrize("batchnorm", POLICIES)
def test_a_loss_that_is_not_finite_is_refused_and_nothing_happened(batchnorm: Any) -> None:
    entry = ZOO["mlp_bn1d"]
    model, (x, y) = fresh(entry), entry.batch()
    entry.loss(model, (x, y)).backward()
    everything = Everything(model)
    x[5] = float("nan")
    with pytest.raises(AccumulationError, match="the loss of microbatch 2 is nan; expected a fin"):
        run(model, entry.loss, split((x, y), size=2), batchnorm=batchnorm)
    everything.check()


@pytest.mark.parametrize("batchnorm", POLICIES)
def test_a_scaler_skips_a_loss_that_is_not_finite_and_statistics_are_as_before(
    batchnorm: Any,
) -> None:
    entry = ZOO["mlp_bn1d"]
    model, (x, y) = fresh(entry), entry.batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = run(
            model, entry.loss, split(batch, size=2), batchnorm=batchnorm,
            backward=lambda loss: scaler.scale(loss).backward(),
        )  # fmt: skip
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss

    before, bad = state(model), x.clone()
    bad[5] = float("nan")
    assert not step((bad, y)).isfinite()
    assert same_state(state(model), before)
    assert scaler.get_scale() == 512.0
    assert step((x, y)).isfinite()
    assert not torch.equal(model.head.weight, before["head.weight"])
    assert model.backbone[1].num_batches_tracked > before["backbone.1.num_batches_tracked"]


def test_backward_gets_the_weighted_losses() -> None:
    net, batch = tokens()
    got = []
    loss = run(net, masked, split(batch, size=3), items=lambda b: 1, backward=got.append)
    assert torch.equal(torch.stack(got).sum().detach(), loss)
    assert all(part.requires_grad for part in got)
    assert grads(net) == [None, None, None]


def test_a_model_without_a_trainable_parameter_gives_its_loss() -> None:
    entry = ZOO["mlp_bn1d"]
    model = fresh(entry).requires_grad_(False).eval()
    loss = run(model, entry.loss, split(entry.batch(), size=4), batchnorm="plain")
    torch.testing.assert_close(loss, entry.loss(model, entry.batch()))


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
@pytest.mark.parametrize("items", [(2, 2, 2, 2), (2, 2, 1, 0)])
def test_ranks_exchange_gradients_once_a_window(items: tuple[int, ...]) -> None:
    """With the last microbatch that has items, whose backward is the last."""
    entry = ZOO["two_branches"]
    alone = fresh(entry)
    net = DistributedDataParallel(copy.deepcopy(alone))
    exchanged: list[int] = []

    def count(state: None, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        exchanged.append(bucket.buffer().numel())
        future: torch.futures.Future[Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    # torch looks at the annotations as they are, not as texts.
    count.__annotations__ |= {"bucket": GradBucket, "return": torch.futures.Future[Tensor]}
    net.register_comm_hook(None, count)
    for model in (net, alone):
        sizes = iter(items)
        run(model, entry.loss, split(entry.batch(), size=2), items=lambda b, s=sizes: next(s))
    assert sum(exchanged) == sum(p.numel() for p in net.parameters())
    for a, b in zip(grads(net), grads(alone), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert same_state(state(net.module), state(alone))


@pytest.mark.usefixtures("one_rank")
def test_fully_sharded_models_exchange_once_a_window() -> None:
    entry = ZOO["mlp_bn1d"]
    net = fresh(entry)
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    fully_shard(net, mesh=mesh)
    asked: list[bool] = []
    original = net.set_requires_gradient_sync

    def note(now: bool, **options: Any) -> None:
        asked.append(now)
        original(now, **options)

    net.set_requires_gradient_sync = note
    run(net, entry.loss, split(entry.batch(), size=2), batchnorm="plain")
    assert asked == [False, True] * 3
    alone = fresh(entry)
    run(alone, entry.loss, split(entry.batch(), size=2), batchnorm="plain")
    for a, b in zip(grads(net), grads(alone), strict=True):
        torch.testing.assert_close(a.full_tensor(), b, rtol=1e-5, atol=1e-6)
