"""How a coupling reads, what it refuses, and that a probe leaves nothing behind."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.errors import BatchError
from frostline.probing import coupling
from tests.everything import everything
from tests.probing import models
from tests.probing.cases import CASES, square
from tests.probing.models import WIDTH, mlp, vectors
from tests.zoo import ZOO, fresh


@pytest.mark.parametrize(
    "name",
    [
        "batch norm",
        "held batch norm",
        "hand-written",
        "scripted",
        "codebook",
        "recurrent over samples",
    ],
)
def test_it_fits_80_columns_and_json(name: str) -> None:
    found = coupling(CASES[name].make(), CASES[name].batch(), compute_loss=square)
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    said = "does not equal" if found.couplers else "equals the big batch"
    assert f"Gradient accumulation {said}" in text
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["version"] == 1
    assert document["ok"] is found.ok
    assert [each["name"] for each in document["couplers"]] == [e.name for e in found.couplers]
    assert found._repr_html_().startswith("<pre>Coupling ")


def test_equal_norms_are_told_together() -> None:
    text = str(coupling(fresh(ZOO["two_branches"]), ZOO["two_branches"].batch()))
    assert "Coupling  TwoBranches: 4 of 26 modules couple samples\n" in text
    assert "run as model(batch[0]); everything was put back" in text
    assert "trunk.{0-1,3}.1  3 × BatchNorm2d  its output" in text
    assert 'fl.accumulate(model, compute_loss, microbatches, batchnorm="exact")' in text
    assert "fl.freeze(model, fl.coupling(model, batch).names, params=False)" in text


def test_what_cannot_be_joined_gets_another_advice() -> None:
    text = str(coupling(models.HandWritten(), models.images()))
    assert "the model: mixes samples by operations that cannot be joined" in text
    assert "fl.accumulate(model" not in text
    assert "fl.freeze" not in text
    text = str(coupling(models.Attention(batch_first=False), models.sequences()))
    assert "made with batch_first=True" in text
    text = str(coupling(CASES["scripted"].make(), vectors()))
    assert "as it was before torch.jit.script" in text
    assert "fl.freeze" not in text


def test_norms_without_statistics_cannot_be_held_instead() -> None:
    text = str(coupling(models.Untracked(), vectors()))
    assert "fl.accumulate" in text
    assert "fl.freeze" not in text


def test_a_model_that_is_a_norm() -> None:
    text = str(coupling(nn.BatchNorm1d(WIDTH), vectors()))
    assert "(the model)  BatchNorm1d" in text
    assert "fl.freeze(model, params=False)" in text


def test_random_modules_are_counted() -> None:
    model = mlp(nn.Dropout(0.1))
    assert coupling(model, vectors()).random == 1
    assert "1 module draws random numbers" in str(coupling(model, vectors()))
    assert coupling(model.eval(), vectors()).random == 0


def test_a_sum_is_told() -> None:
    found = coupling(mlp(nn.Identity()), vectors(), compute_loss=lambda model, x: model(x).sum())
    assert found.ok
    assert "with this loss." in str(found)
    assert "note: the loss is a sum" in str(found)


def test_a_thousand_couplers_in_a_page() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i in range(40):
                self.add_module("norm" + chr(65 + i // 26) + chr(65 + i % 26), nn.BatchNorm1d(1))

        def forward(self, x: Tensor) -> Tensor:
            return sum(norm(x) for norm in self.children())

    text = str(coupling(Wide(), torch.randn(8, 1)))
    assert len(text.splitlines()) < 35
    assert "and 20 lines more: see .couplers" in text


def test_hostile_names_are_escaped() -> None:
    model = nn.Sequential()
    model.add_module("<script>", nn.BatchNorm1d(WIDTH))
    page = coupling(model, vectors())._repr_html_()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


# --- undecided -------------------------------------------------------------------------------


class Boxed(nn.Module):
    """Its output is an object that nobody can look into."""

    def forward(self, x: Tensor) -> Any:
        return type("Box", (), {"x": x})()


class Ragged(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


UNDECIDED: dict[str, tuple[nn.Module, Tensor, str]] = {
    "an unknown container": (Boxed(), vectors(), "no tensor that could be compared"),
    "shapes by content": (Ragged(), vectors(), "could not be told apart"),
    "equal integers": (nn.Embedding(3, 2), torch.ones(8, 2).long(), "Pass real samples"),
    "no numbers": (nn.Linear(WIDTH, 2), vectors() / 0, "held NaN"),
}


@pytest.mark.parametrize("name", UNDECIDED)
def test_what_cannot_be_told_is_said(name: str) -> None:
    model, batch, says = UNDECIDED[name]
    found = coupling(model, batch)
    assert not found.ok
    assert not found.exact
    assert any(says in reason for reason in found.undecided)
    text = str(found)
    assert "Not decided whether gradient accumulation equals the big batch" in text
    assert "note: " in text


def test_a_loss_decides_what_an_output_does_not() -> None:
    assert coupling(Ragged(), vectors(), compute_loss=lambda model, x: model(x).sum()).ok


# --- nothing is left behind ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two_branches", "transformer"])
def test_nothing_is_touched(name: str) -> None:
    model, batch = fresh(ZOO[name]), ZOO[name].batch()
    ZOO[name].loss(model, batch).backward()
    before, drawn = everything(model), torch.get_rng_state()
    coupling(model, batch, compute_loss=ZOO[name].loss)
    assert everything(model) == before
    assert torch.equal(torch.get_rng_state(), drawn)


def test_nothing_is_touched_when_the_loss_raises_late() -> None:
    model, runs = mlp(nn.BatchNorm1d(WIDTH)), iter(range(3))
    before = everything(model)
    with pytest.raises(BatchError, match="raised StopIteration"):
        coupling(model, vectors(), compute_loss=lambda model, x: model(x).mean() * next(runs))
    assert everything(model) == before


def test_hooks_and_lists_of_the_user_stay() -> None:
    model, seen = mlp(nn.BatchNorm1d(WIDTH)), []
    model.notes = [1]
    handle = model[0].register_forward_hook(lambda *_: seen.append(len(model.notes)))
    coupling(model, vectors())
    assert seen
    assert model.notes == [1]
    assert list(model[0]._forward_hooks) == [handle.id]
    assert not model[0]._forward_pre_hooks


# --- what is refused -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda net: coupling(net.parameters(), vectors()), TypeError, "nn.Module"),
        (lambda net: coupling(net, "text"), BatchError, "no tensor in a str"),
        (lambda net: coupling(net, vectors(1)), BatchError, "2 samples or more"),
        (lambda net: coupling(net, vectors()[:, :2]), BatchError, r"model\(batch\) raised Runtime"),
        (lambda net: coupling(net, iter([1])), TypeError, r"next\(iter\(loader\)\)"),
        (
            lambda net: coupling(net, vectors(), compute_loss=nn.MSELoss()),
            TypeError,
            r"a module, MSELoss; .*lambda model, batch: criterion",
        ),
        (
            lambda net: coupling(net, vectors(), compute_loss=nn.MSELoss),
            TypeError,
            "the class MSELoss",
        ),
        (
            lambda net: coupling(net, vectors(), compute_loss=lambda model, x: model(x)),
            BatchError,
            r"a tensor \[4, 5\]; expected the loss.*losses.mean",
        ),
        (
            lambda net: coupling(net, vectors(), compute_loss=lambda model, x: 1 / 0),
            BatchError,
            "raised ZeroDivisionError",
        ),
    ],
)
def test_bad_input_is_answered(ask: Any, error: type[Exception], says: str) -> None:
    model = mlp(nn.BatchNorm1d(WIDTH))
    before = everything(model)
    with pytest.raises(error, match=says):
        ask(model)
    assert everything(model) == before


def test_models_without_values_are_refused() -> None:
    with pytest.raises(BatchError, match="Call the model once"):
        coupling(nn.Sequential(nn.LazyLinear(3)), vectors())
    with pytest.raises(BatchError, match="on the meta device"):
        coupling(nn.Linear(WIDTH, 3, device="meta"), vectors())


def test_a_coupling_is_no_truth_value() -> None:
    with pytest.raises(TypeError, match=r"use \.ok"):
        bool(coupling(nn.Linear(WIDTH, 3), vectors()))
