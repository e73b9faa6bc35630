"""Compensated running statistics: what they mend, and what they do not."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from frostline.accumulation.statistics.running_statistics import policy
from tests.accumulation.statistics.truth import (
    POLICIES,
    run_window,
    same_state,
    state,
)
from tests.zoo import live


def alike(rho: float, samples: int, seed: int) -> Tensor:
    """Images whose 16 pixels correlate by `rho` within an image; mean 3, variance 1."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(samples, 6, 1, generator=draw, dtype=torch.float64)
    own = torch.randn(samples, 6, 16, generator=draw, dtype=torch.float64)
    return (math.sqrt(rho) * common + math.sqrt(1 - rho) * own + 3).reshape(samples, 6, 4, 4)


@pytest.mark.parametrize("momentum", [0.1, 0.02])
def test_compensated_mends_the_mean_to_the_order_of_m_squared(momentum: float) -> None:
    """One window of K = 4 from a mean of 1,000: what is left of it, and what came from where."""
    nets = {name: nn.BatchNorm2d(6, momentum=momentum).double() for name in ("big", *POLICIES)}
    x = alike(0.5, 8, seed=0)
    for name, norm in nets.items():
        net = nn.Sequential(norm)
        if name == "big":
            net(x)
            continue
        statistics = policy(name, net)
        run_window(statistics, net, x.split(2))
        statistics.commit()
    truth = nets["big"].running_mean
    error = {k: float((n.running_mean - truth).abs().max()) for k, n in nets.items()}
    spread = float((torch.stack([part.mean((0, 2, 3)) for part in x.split(2)])).std(0).max())
    assert error["deferred"] < 1e-14
    assert 0 < error["compensated"] < momentum**2 * spread
    assert error["plain"] > 2 * momentum  # of a mean of 3 it takes 4 m instead of m
    assert nets["compensated"].num_batches_tracked == nets["plain"].num_batches_tracked == 4
    assert nets["deferred"].num_batches_tracked == 1


def test_compensated_does_not_mend_the_variance() -> None:
    """Pairs of images, rho 0.5: three quarters of the variance, whatever the momentum."""
    nets = {name: nn.BatchNorm2d(6, momentum=0.05).double() for name in ("compensated", "deferred")}
    for name, norm in nets.items():
        net = nn.Sequential(norm)
        statistics = policy(name, net)
        for window in range(60):
            run_window(statistics, net, alike(0.5, 16, seed=window).split(2))
            statistics.commit()
    variance = {name: float(norm.running_var.mean()) for name, norm in nets.items()}
    n, positions, rho = 2, 16, 0.5
    short = 1 - (positions - 1) * rho / (n * positions - 1)
    short_of_all = 1 - (positions - 1) * rho / (16 * positions - 1)  # a big batch of 16, too
    assert short == pytest.approx(1 - rho / n, abs=0.01)
    assert variance["deferred"] == pytest.approx(short_of_all, abs=0.04)
    assert variance["compensated"] == pytest.approx(short, abs=0.04)


def test_compensated_leaves_a_cumulative_average_to_torch() -> None:
    cumulative = live(nn.Sequential(nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3)))
    alone = copy.deepcopy(cumulative)
    x = torch.randn(8, 3)
    run_window(policy("compensated", cumulative), cumulative, x.split(2))
    for microbatch in x.split(2):
        alone(microbatch)
    assert same_state(state(cumulative[0]), state(alone[0]))
    assert not same_state(state(cumulative[1]), state(alone[1]))


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_compensated_at_the_ends_of_momentum(momentum: float) -> None:
    net = nn.Sequential(live(nn.BatchNorm1d(3, momentum=momentum)))
    old, x = net[0].running_mean.clone(), torch.randn(8, 3)
    run_window(policy("compensated", net), net, x.split(2))
    torch.testing.assert_close(net[0].running_mean, x[6:].mean(0) if momentum else old)
