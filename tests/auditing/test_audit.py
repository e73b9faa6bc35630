"""`fl.audit`: what it takes, what it gives, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import frostline as fl
from frostline.errors import BatchError, FreezeError, FrostlineError, SelectionError
from tests.zoo import live


def net() -> nn.Sequential:
    model = live(nn.Sequential(nn.BatchNorm1d(2), nn.Dropout(), nn.Linear(2, 1)))
    model[0].requires_grad_(False)
    return model


BATCH = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
BUFFERS = ("0.running_mean", "0.running_var", "0.num_batches_tracked")


def compute_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return F.mse_loss(model(x), y)


def test_three_ways_of_knowing_agree() -> None:
    model = net()
    read, measured = fl.audit(model), fl.audit(model, batch=BATCH)
    predicted = fl.audit(model, batch=BATCH.to("meta"))
    assert [r.how for r in (read, predicted, measured)] == ["read", "predicted", "measured"]
    for report in (read, predicted, measured):
        assert report.will_change == report.after_train == BUFFERS
        assert report.undecided == {}
        assert not report.ok


def test_a_model_without_memory_is_predicted() -> None:
    report = fl.audit(net().to("meta"), batch=torch.empty(4, 2, device="meta"))
    assert (report.how, report.will_change) == ("predicted", BUFFERS)


def test_eval_now_and_train_later() -> None:
    model = net().eval()
    for report in (fl.audit(model), fl.audit(model, batch=BATCH)):
        assert report.will_change == ()
        assert report.after_train == BUFFERS


def test_measured_says_by_how_much() -> None:
    model = net()
    mean = model[0].running_mean.clone()
    report = fl.audit(model, batch=BATCH)
    moved = (0.1 * (BATCH.mean(0) - mean)).abs().max().item()
    assert report.drift["0.running_mean"] == pytest.approx(moved, rel=1e-4)
    assert report.drift["0.num_batches_tracked"] == 1.0


def test_a_loss_of_ones_own() -> None:
    model = net()
    report = fl.audit(model, batch=(BATCH, torch.ones(4, 1)), compute_loss=compute_loss)
    assert report.will_change == BUFFERS
    assert "compute_loss" in report.called


def test_nothing_is_frozen() -> None:
    report = fl.audit(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)))
    assert report.ok
    assert any("nothing is claimed" in note for note in report.notes)


def test_lazy_models_are_read() -> None:
    model = nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(2, 1))
    model[1].requires_grad_(False)
    assert fl.audit(model, batch=BATCH).how == "read"


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"frozen": "backbone"}, SelectionError, "matches nothing"),
        ({"optimizer": "AdamW"}, TypeError, "no torch optimizer"),
        ({"batch": DataLoader([1])}, TypeError, "expected one batch"),
        ({"batch": BATCH, "compute_loss": nn.MSELoss()}, TypeError, "def compute_loss"),
        ({"batch": BATCH, "compute_loss": nn.MSELoss}, TypeError, "def compute_loss"),
        ({"batch": BATCH, "compute_loss": 3}, TypeError, "compute_loss is 3"),
        ({"compute_loss": compute_loss}, ValueError, "no batch to call it with"),
        ({"batch": torch.randn(4, 3)}, BatchError, "raised"),
        ({"batch": BATCH, "compute_loss": lambda m, b: m(b)}, BatchError, "compute_loss"),
        ({"batch": BATCH, "compute_loss": lambda m: 0}, BatchError, "compute_loss"),
    ],
)
def test_bad_input_gets_one_clear_error(given: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        fl.audit(net(), **given)


def test_no_model() -> None:
    with pytest.raises(TypeError, match="model"):
        fl.audit("resnet18")  # type: ignore[arg-type]
    with pytest.raises(FreezeError, match="FrozenPart"):
        fl.audit(fl.freeze(net(), "0"))  # type: ignore[arg-type]


def test_a_report_is_no_truth_value_and_prints() -> None:
    report = fl.audit(net())
    with pytest.raises(TypeError, match=r"use \.ok"):
        bool(report)
    assert "FRZ101" in str(report)
    assert max(map(len, str(report).splitlines())) <= 80
    assert "FRZ101" in report._repr_html_()


def test_json_holds_all_of_it() -> None:
    found = json.loads(json.dumps(fl.audit(net(), batch=BATCH).to_dict(), allow_nan=False))
    assert found["version"] == 1
    assert found["will_change"] == list(BUFFERS)
    assert found["claim"]["tensors"] == 5


def test_filter_leaves_findings_out_and_counts_them() -> None:
    report = fl.audit(net())
    without = report.filter(ignore=["FRZ101"])
    assert "FRZ101" not in {f.code for f in without.findings}
    assert (without.ignored, without.ok) == (1, True)
    assert without.will_change == BUFFERS
    assert report.filter(per_name_ignores={"0": ["FRZ101"]}).ok
    assert report.filter(per_name_ignores={"2": ["FRZ101"]}).unused_ignores
    with pytest.raises(FrostlineError, match="FRZ111"):
        report.filter(select=["FRZ1O1"])


def test_the_page_is_written(tmp_path: Path) -> None:
    report = fl.audit(net())
    path = report.save_html(tmp_path / "audit.html")
    assert "FRZ101" in path.read_text()
    (tmp_path / "mine.html").write_text("<html>mine</html>")
    with pytest.raises(FrostlineError, match="left alone"):
        report.save_html(tmp_path / "mine.html")


@pytest.mark.parametrize("severity", ["error", "warning", "info"])
def test_worth(severity: str) -> None:
    report = fl.audit(net())
    order = ["error", "warning", "info"]
    counted = order[: order.index(severity) + 1]
    assert report.worth(severity) == [f for f in report.findings if f.severity in counted]
