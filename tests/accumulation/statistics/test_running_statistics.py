"""Deferred and plain running statistics, against the formula on all inputs that a norm saw."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import frostline as fl
from frostline.accumulation.splitting import split
from frostline.accumulation.statistics.running_statistics import policy
from tests.accumulation.statistics.truth import (
    INPUTS,
    POLICIES,
    Shared,
    by_hand,
    cut,
    first_norm,
    run_window,
    same_state,
    seen_by,
    state,
)
from tests.zoo import ZOO, fresh, live, seeded


def check_deferred(model: nn.Module, x: Tensor, sizes: Sequence[int]) -> None:
    """A window of these sizes leaves the formula, to rounding, and before commit nothing."""
    before = copy.deepcopy(model)
    statistics = policy("deferred", model)
    with seen_by(model) as seen:
        run_window(statistics, model, cut(x, sizes))
    assert same_state(state(model), state(before))
    statistics.commit()
    assert seen
    old = dict(zip(model.modules(), before.modules(), strict=True))
    for norm, calls in seen.items():
        expected = by_hand(old[norm], calls)
        for name, value in expected.items():
            found = getattr(norm, name)
            torch.testing.assert_close(found, value.to(found.dtype), rtol=1e-12, atol=1e-13)


ALL_SPLITS = [(10,), (5, 5), (2, 3, 2, 3), (2, 2, 2, 2, 2), (7, 3)]
CASES = [
    *((name, sizes) for name in ("mlp_bn1d", "conv_bn3d", "instance_norm") for sizes in ALL_SPLITS),
    *(("resnet18", sizes) for sizes in ((5, 5), (2, 3, 2, 3))),
    *(("mobilenetv3", sizes) for sizes in ((5, 5), (2, 3, 2, 3))),
]


@pytest.mark.parametrize(("name", "sizes"), CASES)
def test_deferred_is_the_formula_on_all_that_each_norm_saw(
    name: str, sizes: tuple[int, ...]
) -> None:
    with seeded(0):
        check_deferred(fresh(ZOO[name]).double(), INPUTS[name]()[0].double(), sizes)


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
@pytest.mark.parametrize("sizes", [(10,), (5, 5), (2, 3, 5)])
def test_a_shared_norm_gets_an_update_a_call_in_the_order_of_the_calls(
    momentum: float | None, sizes: tuple[int, ...]
) -> None:
    with seeded(1):
        model = live(Shared(momentum)).double()
        check_deferred(model, torch.randn(10, 3).double() * 2 + 1, sizes)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.sampled_from([0.1, 0.9, None]),
    st.sampled_from([0.0, 300.0]),
)
def test_deferred_is_the_big_batch_where_the_norm_comes_first(
    sizes: list[int], momentum: float | None, shift: float
) -> None:
    """Any split, K = 1 too; a large mean loses no digits, as mean squares would."""
    deferred = nn.Sequential(live(nn.BatchNorm2d(3, momentum=momentum))).double()
    big = copy.deepcopy(deferred)
    with seeded(len(sizes)):
        x = torch.randn(sum(sizes), 3, 2, 2).double() + shift
    statistics = policy("deferred", deferred)
    run_window(statistics, deferred, cut(x, sizes))
    statistics.commit()
    big(x)
    for name, value in big.state_dict().items():
        torch.testing.assert_close(deferred.state_dict()[name], value, rtol=1e-12, atol=1e-12)


def test_windows_follow_each_other_and_a_short_one_counts_in_full() -> None:
    deferred = first_norm(momentum=None).double()
    big = copy.deepcopy(deferred)
    x = INPUTS["resnet18"]()[0][:, :2].double()
    statistics = policy("deferred", deferred)
    for window in (x, x[:3], x[3:]):
        for microbatch in split(window, size=2):
            with statistics.forward(5):  # the last windows end before that
                deferred(microbatch)
        statistics.commit()
        big(window)
    for name, value in big.state_dict().items():
        torch.testing.assert_close(deferred.state_dict()[name], value, rtol=1e-12, atol=1e-12)


def test_float32_is_as_near_to_float64_as_the_big_batch_is() -> None:
    net, big, truth = (first_norm() for _ in range(3))
    x = INPUTS["resnet18"]()[0][:, :2] + 20
    truth.double()(x.double())
    big(x)
    statistics = policy("deferred", net)
    run_window(statistics, net, x.split(3))
    statistics.commit()
    for name in ("running_mean", "running_var"):
        true = getattr(truth[1], name)
        mine, theirs = (float((getattr(n[1], name) - true).abs().max()) for n in (net, big))
        assert 0 < mine < 3 * theirs + 1e-7 * float(true.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_inputs(dtype: torch.dtype, autocast: bool) -> None:
    net, x = first_norm(), INPUTS["resnet18"]()[0][:, :2]
    truth = copy.deepcopy(net)
    truth(x)
    if not autocast:
        net, x = net.to(dtype), x.to(dtype)
    statistics = policy("deferred", net)
    with torch.autocast("cpu", dtype, enabled=autocast):
        run_window(statistics, net, x.split(5))
    statistics.commit()
    rtol = 0.01 if autocast or dtype is torch.float16 else 0.02
    for name in ("running_mean", "running_var"):
        found = getattr(net[1], name)
        assert found.dtype == (torch.float32 if autocast else dtype)
        torch.testing.assert_close(found.float(), getattr(truth[1], name), rtol=rtol, atol=0.01)


def test_outputs_and_gradients_are_those_of_each_microbatch_by_itself() -> None:
    """Under all three the same bits as without: only the buffers differ."""
    entry = ZOO["resnet18"]
    found = []
    for name in (None, *POLICIES):
        model = fresh(entry)
        statistics = policy(name or "plain", model)
        for microbatch in split(entry.batch(), count=2):
            if name is None:
                entry.loss(model, microbatch).backward()
                continue
            with statistics.forward(2):
                loss = entry.loss(model, microbatch)
            with statistics.backward():
                loss.backward()
        found.append([p.grad for p in model.parameters()])
    for grads in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads, found[0], strict=True))


def test_plain_is_torch() -> None:
    model = fresh(ZOO["mobilenetv3"])
    alone = copy.deepcopy(model)
    x = INPUTS["mobilenetv3"]()[0]
    with seeded(0):
        statistics = policy("plain", model)
        run_window(statistics, model, x.split(5))
        statistics.commit()
    with seeded(0):
        for microbatch in x.split(5):
            alone(microbatch)
    assert same_state(state(model), state(alone))


@pytest.mark.parametrize("policy_name", POLICIES)
def test_held_norms_are_not_touched(policy_name: str) -> None:
    model = fresh(ZOO["resnet18"])
    fl.freeze(model, "layer[1-3]")
    frozen_in_eval = model.get_submodule("layer4.0.bn1").eval()
    still = [model.get_submodule("layer2.0.bn1"), frozen_in_eval]
    moved = model.get_submodule("layer4.0.bn2")
    before = [state(norm) for norm in (*still, moved)]
    statistics = policy(policy_name, model)
    run_window(statistics, model, INPUTS["resnet18"]()[0].split(5))
    statistics.commit()
    assert all(same_state(state(n), b) for n, b in zip(still, before, strict=False))
    assert not same_state(state(moved), before[2])


class Functional(nn.Module):
    """Calls the function with buffers of its own names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("variance", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        first = F.batch_norm(x, None, None, training=True)  # updates nothing
        return F.batch_norm(first + x, self.mean, self.variance, training=True, momentum=0.3)


def test_a_functional_call_is_deferred_like_a_module() -> None:
    net, norm = Functional().double(), nn.BatchNorm1d(3, momentum=0.3).double()
    x = torch.randn(8, 3).double()
    inputs = [part + F.batch_norm(part, None, None, training=True) for part in x.split(2)]
    statistics = policy("deferred", net)
    run_window(statistics, net, x.split(2))
    assert net.mean.tolist() == [0, 0, 0]
    statistics.commit()
    norm(torch.cat(inputs))
    torch.testing.assert_close(net.mean, norm.running_mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(net.variance, norm.running_var, rtol=1e-12, atol=1e-14)


def test_microbatches_without_a_sample() -> None:
    """They add nothing to what the others saw; alone they leave averages as they were."""
    net = first_norm().double()
    big, x = copy.deepcopy(net), INPUTS["resnet18"]()[0][:, :2].double()
    statistics = policy("deferred", net)
    run_window(statistics, net, [x[:0], x[:4], x[:0]])
    statistics.commit()
    big(x[:4])
    for name, value in state(big).items():
        torch.testing.assert_close(state(net)[name], value, rtol=1e-12, atol=1e-14)
    before = state(net)
    run_window(statistics, net, [x[:0]])
    statistics.commit()
    before["1.num_batches_tracked"] += 1
    assert same_state(state(net), before)


def test_a_norm_that_counts_as_old_torch_did() -> None:
    class Old(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            self.num_batches_tracked = self.num_batches_tracked + 1
            m = 1 / float(self.num_batches_tracked)
            args = (self.running_mean, self.running_var, self.weight, self.bias, True, m)
            return F.batch_norm(x, *args)

    net = nn.Sequential(live(Old(3, momentum=None))).double()
    big, counter = copy.deepcopy(net), net[0].num_batches_tracked
    x = torch.randn(8, 3).double()
    statistics = policy("deferred", net)
    run_window(statistics, net, x.split(2))
    assert net[0].num_batches_tracked is counter
    statistics.commit()
    big(x)
    for name, value in big.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-12, atol=1e-14)


def test_a_branch_that_some_microbatches_take() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3, momentum=0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x)
            return self.norm(x * 3) if len(x) == 3 else x

    net = live(Branching()).double()
    check_deferred(net, torch.randn(7, 3).double(), (2, 3, 2))
