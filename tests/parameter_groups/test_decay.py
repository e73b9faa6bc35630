"""What gets no weight decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from frostline.errors import SelectionError
from frostline.parameter_groups import param_groups
from tests.parameter_groups.seen import members, rates


class Tokens(nn.Module):
    """One of each: a token, a scale, biases of one and of three dimensions, a table."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.ones(1, 1, 2))
        self.scale = nn.Parameter(torch.ones(()))
        self.bias = nn.Parameter(torch.ones(2, 2, 2))
        self.debias = nn.Parameter(torch.ones(2, 2))
        self.norm = nn.LayerNorm(2)
        self.fc = nn.Linear(2, 2)


class Says(Tokens):
    def no_weight_decay(self) -> set[str]:
        return {"token", "fc.*"}


def undecayed(model: nn.Module, **asked: Any) -> list[str]:
    found = rates(model, param_groups(model, 0.1, weight_decay=0.5, **asked))
    assert {decay for _, decay in found.values()} <= {0.0, 0.5}
    return [name for name, (_, decay) in found.items() if decay == 0.0]


USUAL = ["scale", "bias", "norm.weight", "norm.bias", "fc.bias"]


def test_the_usual_rule() -> None:
    assert undecayed(Tokens()) == USUAL


def test_what_the_model_says_is_added() -> None:
    assert set(undecayed(Says())) == {*USUAL, "token", "fc.weight"}


def test_a_submodule_says_it_for_itself() -> None:
    model = nn.ModuleDict({"says": Says(), "silent": Tokens()})
    found = undecayed(model)
    assert {"says.token", "says.fc.weight"} <= set(found)
    assert not {"silent.token", "silent.fc.weight"} & set(found)


def test_the_outermost_speaks_for_all_below_it() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Says()

        def no_weight_decay(self) -> set[str]:
            return {"inner.debias"}

    found = undecayed(Outer())
    assert "inner.debias" in found
    assert "inner.token" not in found


def test_names_are_canonical() -> None:
    model = parametrizations.orthogonal(Says(), "token")
    model.fc = parametrizations.spectral_norm(nn.Linear(2, 2), "bias", dim=0)
    found = undecayed(torch.compile(model))
    assert any("token" in name for name in found)
    assert any("fc.parametrizations.bias" in name for name in found)


def test_none_is_that_everything_decays() -> None:
    assert undecayed(Says(), no_decay=None) == []


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("token", ["token"]),
        ("**.bias", ["bias", "norm.bias", "fc.bias"]),
        (nn.LayerNorm, ["norm.weight", "norm.bias"]),
        ([nn.LayerNorm, "scale"], ["scale", "norm.weight", "norm.bias"]),
        (lambda name, module: name == "fc", ["fc.weight", "fc.bias"]),
    ],
    ids=["name", "pattern", "type", "list", "function"],
)
def test_a_selector_is_the_whole_rule(selector: Any, names: list[str]) -> None:
    assert undecayed(Says(), no_decay=selector) == names


def test_a_tied_tensor_does_not_decay_when_one_place_is_selected() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(2, 2), "head": nn.Linear(2, 2, bias=False)})
    model["head"].weight = model["embed"].weight
    assert undecayed(model, no_decay="head") == ["embed.weight"]


def test_without_weight_decay_nothing_is_split() -> None:
    model = Says()
    assert [g["name"] for g in param_groups(model, 0.1)] == ["model"]
    assert list(members(model, param_groups(model, 0.1, groups={"fc": 1.0}))) == ["rest", "fc"]


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_a_selector_that_matches_nothing_is_refused(weight_decay: float) -> None:
    with pytest.raises(SelectionError, match="nearest names are: 'token'"):
        param_groups(Tokens(), 0.1, weight_decay=weight_decay, no_decay="tokn")
    with pytest.raises(SelectionError, match="cannot select by bool"):
        param_groups(Tokens(), 0.1, weight_decay=weight_decay, no_decay=False)
