"""`fl.recalibrate(method="merged")`, and how far it and torch's update_bn are from the truth."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from frostline.errors import AccumulationError
from frostline.recalibration import recalibrate
from tests.recalibration import truth
from tests.zoo import live


def first_norm() -> nn.Module:
    return live(nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))).double()


def test_values_count_alike_whatever_batch_they_are_in() -> None:
    model = first_norm()
    x = torch.randn(13, 2, 5, 5, dtype=torch.float64)
    x[10:] = 8 * x[10:] + 5  # a short batch at the end that is not like the others
    exact = truth.truth(model, x)
    recalibrate(model, list(x.split(5)), method="merged")
    assert truth.distance(truth.statistics(model), exact) < 1e-13
    update_bn(x.split(5), model)
    assert truth.distance(truth.statistics(model), exact) > 0.2


def test_a_mean_that_is_large_costs_no_digits() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).double()
    x = torch.randn(12, 3, dtype=torch.float64) * 1e-3 + 1e6
    exact = truth.truth(model, x)
    recalibrate(model, list(x.split(4)), method="merged")
    assert truth.distance(truth.statistics(model), exact) < 1e-6  # E[x^2] - E[x]^2 has no digit


def test_batches_normalise_themselves() -> None:
    model = live(truth.UNet()).double()
    x = torch.randn(12, 1, 8, 8, dtype=torch.float64)
    inputs: list[Tensor] = []
    one = truth.in_training(model)
    one.up[1].register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        for batch in x.split([5, 4, 3]):
            one(batch)
    recalibrate(model, list(x.split([5, 4, 3])), method="merged")
    values = torch.cat(inputs).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model.up[1].running_mean, values.mean(1))
    torch.testing.assert_close(model.up[1].running_var, values.var(1))


def test_at_depth_small_batches_are_far_from_the_truth_and_layerwise_is_not() -> None:
    known = truth.of_zoo("mobilenetv3")
    batches = list(known.x.split(2))
    far = {}
    for how in ("layerwise", "merged"):
        model = deepcopy(known.model)
        recalibrate(model, batches, method=how)
        far[how] = truth.distance(truth.statistics(model), known.found)
    model = truth.in_training(known.model)
    update_bn(batches, model)
    far["update_bn"] = truth.distance(truth.statistics(model), known.found)
    assert far["layerwise"] <= known.limit
    assert min(far["merged"], far["update_bn"]) > 0.3, far


def test_one_value_for_each_channel_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    batches = [torch.randn(4, 2), torch.randn(1, 2)]
    with pytest.raises(AccumulationError, match=r'^1 has one value .* method="layerwise"'):
        recalibrate(model, batches, method="merged")
    recalibrate(model, batches)


def test_an_iterator_is_taken_as_far_as_samples_go() -> None:
    model, taken = first_norm(), []
    copy = deepcopy(model)

    def endless() -> Iterator[Tensor]:
        while True:
            taken.append(torch.randn(4, 2, 5, 5, dtype=torch.float64))
            yield taken[-1]

    result = recalibrate(model, endless(), method="merged", samples=10)
    assert (result.samples, result.batches, len(taken)) == (12, 3, 3)
    exact = truth.truth(copy, torch.cat(taken))
    assert truth.distance(truth.statistics(model), exact) < 1e-13
