"""What accumulation does to running statistics: the figures against synthetic truths and a run."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.explaining.accumulating import Accumulated
from tests.zoo import ZOO, live

CHANNELS, POSITIONS = 6, 16


def alike(rho: float, samples: int, seed: int = 0) -> Tensor:
    """Images whose pixels have correlation `rho` within an image, and variance 1."""
    draw = torch.Generator().manual_seed(seed)
    common = torch.randn(samples, CHANNELS, 1, generator=draw, dtype=torch.float64)
    own = torch.randn(samples, CHANNELS, POSITIONS, generator=draw, dtype=torch.float64)
    values = math.sqrt(rho) * common + math.sqrt(1 - rho) * own
    return values.reshape(samples, CHANNELS, 4, 4) * 2 + 3


def first_norm(batch: Tensor, count: int, momentum: float | None = 0.1) -> Accumulated:
    net = nn.Sequential(live(nn.BatchNorm2d(CHANNELS, momentum=momentum)).double())
    (found,) = fl.explain(net, microbatches=count, batch=batch).accumulated
    return found


@pytest.mark.parametrize("rho", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("size", [2, 4, 8])
def test_the_formula_is_the_run_for_images_of_known_correlation(rho: float, size: int) -> None:
    found = first_norm(alike(rho, 4096), 4096 // size)
    assert found.rho == pytest.approx(rho, abs=0.02)
    expected = 1 - (POSITIONS - 1) * rho / (size * POSITIONS - 1)
    assert found.predicted == pytest.approx(expected, abs=0.02)
    assert found.measured == pytest.approx(expected, abs=0.02)


def test_half_correlated_pairs_lose_a_quarter() -> None:
    """rho 0.5, two images a microbatch: variance about 1 - rho / n = 0.75 of the truth."""
    found = first_norm(alike(0.5, 4096), 2048)
    assert found.measured == pytest.approx(0.758, abs=0.01)


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("momentum", [0.1, 0.01, 1.0, None])
def test_the_running_mean_is_the_formula_after_a_real_run(
    count: int, momentum: float | None
) -> None:
    found = first_norm(alike(0.3, 16), count, momentum)
    assert found.error is not None
    assert found.error < 1e-12
    if momentum is None:
        assert (found.kept, found.kept_accumulated) == (None, None)
    else:
        assert found.kept == pytest.approx(1 - momentum)
        assert found.kept_accumulated == pytest.approx((1 - momentum) ** count)


def test_what_is_kept_is_what_a_run_keeps() -> None:
    """The slow way: a mean of 1,000 shrinks to what is kept of it while the inputs are all zero."""
    norm = nn.BatchNorm1d(2, momentum=0.1)
    net = nn.Sequential(norm)
    norm.running_mean.fill_(1000.0)
    batch = torch.zeros(8, 2)
    (found,) = fl.explain(net, microbatches=4, batch=batch).accumulated
    for piece in batch.chunk(4):
        net(piece)
    assert found.kept_accumulated == pytest.approx(float(norm.running_mean[0]) / 1000, rel=1e-6)


def test_one_microbatch_is_the_big_batch() -> None:
    found = first_norm(alike(0.5, 16), 1)
    assert found.measured == pytest.approx(1.0, abs=1e-12)
    assert found.kept == found.kept_accumulated


def test_real_models_of_one_and_of_many_layers() -> None:
    entry = ZOO["resnet18"]
    model = entry.build()
    explanation = fl.explain(model, microbatches=2, batch=entry.batch())
    found = {entry.name: entry for entry in explanation.accumulated}
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert list(found) == norms
    assert max(e.error for e in found.values() if e.error is not None) < 1e-5
    assert "running variance, of the big batch" in str(explanation)


def test_of_many_norms_those_are_shown_that_change_most() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.BatchNorm2d(CHANNELS) for _ in range(30))).double()
    explanation = fl.explain(net, microbatches=4, batch=alike(0.5, 16))
    text = str(explanation)
    assert "and 10 that are nearer to 1" in text
    far = sorted(explanation.accumulated, key=lambda e: -abs(1 - (e.measured or 1)))[:20]
    shown = [line.split()[0] for line in text.partition("the run\n")[2].splitlines()[:20]]
    assert sorted(shown) == sorted(entry.name for entry in far)


def test_held_norms_have_no_row_and_no_norms_a_sentence() -> None:
    entry = ZOO["two_branches"]
    model = entry.build()
    fl.freeze(model, "trunk")
    explanation = fl.explain(model, microbatches=2, batch=entry.batch())
    assert [e.name for e in explanation.accumulated] == ["second.2"]
    alone = fl.explain(nn.Sequential(nn.LayerNorm(3)), microbatches=2)
    assert alone.accumulated == ()
    assert "accumulation leaves none behind" in " ".join(str(alone).split())


def test_without_a_batch_there_are_formulas_and_no_figures() -> None:
    explanation = fl.explain(ZOO["two_branches"].build(), microbatches=8)
    assert {e.measured for e in explanation.accumulated} == {None}
    text = str(explanation)
    assert "leaves 0.43 of the old running mean" in text
    assert "1.76 steps instead of 10 steps" in text


def test_a_norm_that_is_called_twice_has_no_figures() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = live(nn.BatchNorm1d(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x) + 1)

    explanation = fl.explain(Twice(), microbatches=2, batch=torch.randn(8, 3))
    assert explanation.accumulated[0].measured is None
    assert "it did not run once" in str(explanation)
