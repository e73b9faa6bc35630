"""What a recalibration says: rows against figures taken by hand, text, JSON, progress."""

from __future__ import annotations

import io
import json
import logging
import math

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.recalibration import progress, recalibrate
from tests.recalibration import truth
from tests.zoo import BREADTH, ZOO, fresh


def test_rows_compare_old_and_new() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3)).double()
    model[0].running_mean.copy_(torch.tensor([0.0, 5.0, 1.0]))
    model[0].running_var.copy_(torch.tensor([4.0, 4.0, 0.25]))
    x = torch.tensor([[1.0, 5.0, 1.0], [3.0, 5.0, 1.0]], dtype=torch.float64)
    (row,) = recalibrate(model, [x]).rows
    variance, eps = 2.0, model[0].eps
    assert (row.name, row.type, row.calls, row.values) == ("0", "BatchNorm1d", 1, 2)
    assert row.moved == pytest.approx((0, 0, 2 / math.sqrt(variance + eps)))
    ratios = sorted([(variance + eps) / (4 + eps), eps / (4 + eps), eps / (0.25 + eps)])
    assert row.ratio == pytest.approx(ratios)


def test_rows_are_in_the_order_in_which_norms_run() -> None:
    model = nn.Sequential()
    model.last, model.first = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    model.forward = lambda x: model.last(model.first(x))
    assert [row.name for row in recalibrate(model, [torch.randn(4, 3)]).rows] == ["first", "last"]


@pytest.mark.parametrize("method", ["layerwise", "merged"])
def test_the_definition_is_named(method: str) -> None:
    result = recalibrate(truth.Shared(), [torch.randn(4, 5)], method=method)
    assert (result.method, result.to_dict()["definition"]) == (method, result.definition)
    text = " ".join(str(result).split())
    assert result.definition in text
    assert ("one training-mode forward of the whole" in text) is (method == "layerwise")
    assert (result.waiting is None) is (method == "merged")


@pytest.mark.parametrize("name", ["mobilenetv3", "hf_regnet", "conv_bn3d"])
def test_it_fits_80_columns_and_json(name: str) -> None:
    entry = (ZOO | BREADTH)[name]
    model = fresh(entry)
    first = next(n for n, _ in truth.norms(model))
    if name == "mobilenetv3":
        fl.freeze(model, first)
    result = recalibrate(model, [entry.batch()], samples=1)
    lines = str(result).splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 40
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["version"] == 1
    assert len(document["rows"]) == len(result.rows)
    assert (f"and {len(result.rows) - 20} that moved less" in str(result)) is (
        len(result.rows) > 20
    )
    assert result._repr_html_().startswith("<pre>Recalibration")


def test_old_statistics_that_are_not_finite_can_be_told() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    model[0].running_mean[1] = float("nan")
    result = recalibrate(model, [torch.randn(4, 3)])
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["rows"][0]["moved"] == {
        "least": None, "median": None, "most": None,
    }  # fmt: skip
    assert "nan" in str(result)
    assert model[0].running_mean.isfinite().all()


def test_a_hostile_name_is_escaped() -> None:
    model = nn.Module()
    model.add_module("<script>", nn.BatchNorm1d(3))
    model.forward = lambda x: model._modules["<script>"](x)
    assert "<script>" not in recalibrate(model, [torch.randn(4, 3)])._repr_html_()


def test_what_is_needed_is_said_beforehand(caplog: pytest.LogCaptureFixture) -> None:
    class Late(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            said.append(caplog.text)
            return x

    said: list[str] = []
    model = nn.Sequential(Late(), nn.BatchNorm1d(3))
    with caplog.at_level(logging.INFO, "frostline"):
        result = recalibrate(model, list(torch.randn(12, 3).split(3)))
    assert f"4 batches wait at 1 norm call, {result.waiting}" in said[1]  # said[0] was measured


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_shows_on_a_terminal_and_only_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = list(torch.randn(12, 5).split(3))
    for stderr, patience, shown in (
        (Terminal(), 0.0, True),
        (Terminal(), 60.0, False),
        (io.StringIO(), 0.0, False),
    ):
        monkeypatch.setattr("sys.stderr", stderr)
        monkeypatch.setattr(progress, "PATIENCE", patience)
        recalibrate(truth.Shared(), batches)
        assert ("4 batches wait at 3 norm calls" in " ".join(stderr.getvalue().split())) is shown
        recalibrate(truth.Shared(), iter(batches), method="merged")
        assert ("batch by batch" in stderr.getvalue()) is shown
