"""Moments of parts, merged, against all values at once."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from frostline._moments import Moments


def parts_of(x: Tensor, ends: set[int]) -> list[Tensor]:
    edges = [0, *sorted(ends), len(x)]
    return [x[a:b] for a, b in pairwise(edges)]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    ends=st.sets(st.integers(0, 9)),
    shape=st.sampled_from([(3,), (3, 4), (3, 2, 5), (3, 2, 2, 2)]),
    mean=st.sampled_from([0.0, 300.0, 1e6]),
)
def test_any_split(ends: set[int], shape: tuple[int, ...], mean: float) -> None:
    x = torch.randn(9, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x * torch.tensor([0.5, 1.0, 7.0]).view(1, 3, *[1] * (x.dim() - 2)) + mean
    merged = Moments.merged(map(Moments.of, parts_of(x, ends)))
    values = x.transpose(0, 1).flatten(1)
    assert merged.count == values.shape[1]
    deviation = values.std(1)
    assert ((merged.mean - values.mean(1)).abs() / deviation).max() < 1e-9
    for correction in (0, 1):
        variance = values.var(1, correction=correction)
        torch.testing.assert_close(
            merged.variance(correction=correction), variance, rtol=1e-9, atol=0
        )


def test_a_large_mean_does_not_cancel() -> None:
    """Where E[x^2] - E[x]^2 gives a negative variance in float32."""
    x = 300 + 0.01 * torch.randn(64, 2)
    squares = (x.square().mean(0) - x.mean(0).square()).double()
    found = Moments.merged(map(Moments.of, x.split(8))).variance()
    truth = x.double().var(0, correction=0)
    assert ((found - truth).abs() / truth).max() < 1e-2
    assert ((squares - truth).abs() / truth).max() > 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    x = (torch.randn(512, 3) + 20).to(dtype)
    found = Moments.of(x)
    torch.testing.assert_close(found.mean, x.double().mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.variance(), x.double().var(0, correction=0), rtol=1e-5, atol=0)


def test_nothing_changes_nothing() -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    for order in ([x[:0], x], [x, x[:0]]):
        merged = Moments.merged(map(Moments.of, order))
        assert torch.equal(merged.mean, Moments.of(x).mean)
        assert torch.equal(merged.m2, Moments.of(x).m2)


def test_what_a_norm_leaves_with_momentum_one() -> None:
    x = torch.randn(6, 3, 4, dtype=torch.float64)
    mean, variance = torch.zeros(3).double(), torch.ones(3).double()
    F.batch_norm(x, mean, variance, training=True, momentum=1.0)
    found, direct = Moments.from_unbiased(24, mean, variance), Moments.of(x)
    torch.testing.assert_close(found.mean, direct.mean)
    torch.testing.assert_close(found.m2, direct.m2)
