"""Which norms take part, and what is written where."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import frostline as fl
from frostline._state import same_bits
from frostline.errors import AccumulationError, SelectionError
from frostline.recalibration import recalibrate
from tests.recalibration import truth
from tests.zoo import ZOO, fresh, live


def net() -> nn.Sequential:
    return live(
        nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), nn.BatchNorm1d(4)
        ).double()
    )  # type: ignore[return-value]


def batches(count: int = 3) -> list[Tensor]:
    draw = torch.Generator().manual_seed(5)
    return [torch.randn(4, 3, generator=draw, dtype=torch.float64) * 2 + 1 for _ in range(count)]


def test_modes_and_momentum_make_no_difference() -> None:
    model = net()
    exact = truth.truth(model, torch.cat(batches()))
    for change in (
        model.eval,
        model.train,
        lambda: setattr(model[1], "momentum", 0.0),
        lambda: setattr(model[1], "momentum", None),
        model[4].eval,
        lambda: model.requires_grad_(False),
    ):
        change()
        result = recalibrate(model, batches())
        assert truth.distance(truth.statistics(model), exact) < 1e-13
        result.undo()


@pytest.mark.parametrize("method", ["layerwise", "merged"])
def test_what_is_not_selected_runs_as_in_eval(method: str) -> None:
    model = net()
    before = truth.statistics(model)
    result = recalibrate(model, batches(), select="4", method=method)
    after = truth.statistics(model)
    assert [row.name for row in result.rows] == ["4"]
    assert all(same_bits(before[name], after[name]) for name in before if name.startswith("1."))
    inputs = model[:4].eval()(torch.cat(batches()))
    torch.testing.assert_close(after["4.running_mean"], inputs.mean(0))
    torch.testing.assert_close(after["4.running_var"], inputs.var(0))


@pytest.mark.parametrize("switches", [{}, {"stats": "batch", "mode": "follow"}])
def test_held_norms_are_left_and_said(switches: dict[str, str]) -> None:
    model = net()
    part = fl.freeze(model, "1", **switches)
    eval_inputs = model[:4].eval()(torch.cat(batches()))
    model.train()
    result = recalibrate(model, batches())
    assert result.left == {"1": "held by fl.freeze"}
    assert "left as they were, held by fl.freeze: 1" in str(result)
    part.assert_unchanged()
    torch.testing.assert_close(model[4].running_mean, eval_inputs.mean(0))
    with pytest.raises(SelectionError, match=r"1: held by fl\.freeze"):
        recalibrate(model, batches(), select="1")
    assert recalibrate(model, batches()).left == {"1": "held by fl.freeze"}  # still held


def test_what_follows_on_purpose_takes_part() -> None:
    model = net()
    fl.freeze(model, "1", stats="update")
    assert len(recalibrate(model, batches()).rows) == 2


def test_the_line_of_the_error_works() -> None:
    model = net()
    part = fl.freeze(model)
    with pytest.raises(SelectionError, match=r"part.undo\(\); fl.recalibrate\(model, batches\);"):
        recalibrate(model, batches())
    part.undo()
    recalibrate(model, batches())
    fl.freeze(model).assert_unchanged()


class Frozen(nn.Module):
    """As torchvision's FrozenBatchNorm2d: it has statistics, and never updates them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("running_var", torch.ones(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()


def test_a_synchronised_norm_on_one_rank() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.SyncBatchNorm(4)).double()
    exact = truth.truth(model, torch.cat(batches()))
    recalibrate(model, batches())
    assert truth.distance(truth.statistics(model), exact) < 1e-13


def test_norms_that_never_update_are_left() -> None:
    model = nn.Sequential(net(), Frozen(), nn.BatchNorm1d(4).double())
    model[2].track_running_stats = False
    result = recalibrate(model, batches())
    assert result.left == {
        "1": "never updates its statistics",
        "2": "track_running_stats is False",
    }


class OwnCall(nn.Module):
    """No norm of torch, but it calls torch's function with buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("running_var", torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class OwnCode(OwnCall):
    """The same by hand."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        mean, var = x.mean(0), x.var(0, correction=0)
        self.running_mean.lerp_(mean.detach(), 0.1)
        self.running_var.lerp_(var.detach(), 0.1)
        return (x - mean) / (var + 1e-5).sqrt()


@pytest.mark.parametrize("method", ["layerwise", "merged"])
def test_a_norm_is_known_by_the_function_that_it_calls(method: str) -> None:
    model = nn.Sequential(OwnCall(), net())
    exact = truth.truth_of_inputs(model, torch.cat(batches()))
    recalibrate(model, batches(1) + batches()[1:], method=method)
    assert truth.distance(
        {k: v for k, v in truth.statistics(model).items() if k.startswith("0.")},
        {k: v for k, v in exact.items() if k.startswith("0.")},
    ) < 1e-13  # fmt: skip


@pytest.mark.parametrize("method", ["layerwise", "merged"])
def test_a_norm_that_is_written_by_hand_is_refused_by_name(method: str) -> None:
    model = nn.Sequential(net(), nn.Linear(4, 3).double(), OwnCode())
    before = truth.statistics(model)
    with pytest.raises(AccumulationError, match=r"2, of type OwnCode, normalises without calling"):
        recalibrate(model, batches(), method=method)
    assert all(map(same_bits, before.values(), truth.statistics(model).values()))
    recalibrate(model, batches(), method=method, select=nn.BatchNorm1d)


def test_a_norm_that_nothing_reaches_is_said_and_left() -> None:
    model = net()
    model.aside = nn.BatchNorm1d(7)
    model.forward = lambda x: nn.Sequential.forward(model[:5], x)
    result = recalibrate(model, batches())
    assert result.left == {"aside": "no batch reached it"}
    with pytest.raises(AccumulationError, match="no batch reached a norm that takes part"):
        recalibrate(model, batches(), select="aside")


@pytest.mark.parametrize("method", ["layerwise", "merged"])
def test_counters_go_on_by_what_one_forward_counts(method: str) -> None:
    model = live(truth.Shared())
    before = int(model.norm.num_batches_tracked), int(model.last.num_batches_tracked)
    recalibrate(model, [torch.randn(4, 5) for _ in range(3)], method=method)
    after = int(model.norm.num_batches_tracked), int(model.last.num_batches_tracked)
    assert after == (before[0] + 2, before[1] + 1)


def test_a_norm_that_averages_over_all_batches_goes_on_from_there() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=None)).double()
    recalibrate(model, batches())
    found = truth.statistics(model)
    x = batches(4)[3]
    model.train()(x)
    assert int(model[0].num_batches_tracked) == 2
    torch.testing.assert_close(model[0].running_mean, (found["0.running_mean"] + x.mean(0)) / 2)


def test_instance_norms_average_over_the_samples() -> None:
    model, x = truth.zoo("instance_norm")
    counter = int(model.backbone[1].num_batches_tracked)
    result = recalibrate(model, list(x.split([3, 5])))
    sample = model.backbone[0](x).flatten(2)
    torch.testing.assert_close(model.backbone[1].running_mean, sample.mean(2).mean(0))
    torch.testing.assert_close(model.backbone[1].running_var, sample.var(2).mean(0))
    assert int(model.backbone[1].num_batches_tracked) == counter  # torch does not count there
    assert result.rows[0].calls == 1


@pytest.mark.parametrize(
    ("name", "called"),
    [("hf_resnet", "model(**batch)"), ("two_branches", "model(batch[0])")],
)
def test_batches_are_called_as_everywhere(name: str, called: str) -> None:
    model, batch = fresh(ZOO[name]), ZOO[name].batch()
    copy = truth.in_training(model)
    for _, norm in truth.norms(copy):
        norm.momentum = 1.0
    with torch.no_grad():
        ZOO[name].loss(copy, batch)
    result = recalibrate(model, [batch])
    assert result.called == called
    assert truth.distance(truth.statistics(model), truth.statistics(copy)) < 1e-4


@pytest.mark.parametrize("selector", ["0", nn.Linear, re.compile("0")])
def test_a_selection_without_norms_names_those_that_are_there(selector: object) -> None:
    with pytest.raises(SelectionError, match=r"no norm with running statistics in .*'1', '4'"):
        recalibrate(net(), batches(), select=selector)


def test_a_selector_that_matches_nothing() -> None:
    with pytest.raises(SelectionError, match="matches nothing"):
        recalibrate(net(), batches(), select="backbone")


def test_a_model_without_norms() -> None:
    with pytest.raises(SelectionError, match="Sequential has no norm with running statistics"):
        recalibrate(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), batches())
