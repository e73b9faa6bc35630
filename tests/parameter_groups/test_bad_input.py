"""Wrong arguments: what is wrong, and the line to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import SelectionError
from frostline.parameter_groups import param_groups


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))


NO_MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "parameters": (lambda: net().parameters(), "got a generator"),
    "list": (lambda: list(net().parameters()), "got a list"),
    "state dict": (lambda: net().state_dict(), "got a OrderedDict"),
    "tensor": (lambda: torch.ones(2), "got a Tensor"),
    "class": (lambda: nn.Linear, "got a type"),
}


@pytest.mark.parametrize("name", NO_MODELS)
def test_a_model_is_needed(name: str) -> None:
    make, message = NO_MODELS[name]
    with pytest.raises(TypeError, match=f"{message}. Pass the model, not its parameters: fl.param"):
        param_groups(make(), 0.1)


def test_a_handle_is_no_model() -> None:
    with pytest.raises(TypeError, match="got a FrozenPart, the handle of an earlier freeze"):
        param_groups(fl.freeze(net(), "0"), 0.1)  # type: ignore[arg-type]


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "lr negative": ({"lr": -1e-9}, ValueError, "lr=-1e-09: expected a finite number, 0 or above"),
    "lr nan": ({"lr": float("nan")}, ValueError, "lr=nan"),
    "lr infinite": ({"lr": float("inf")}, ValueError, "lr=inf"),
    "lr text": ({"lr": "1e-3"}, TypeError, "lr='1e-3': expected a number and got a str"),
    "lr none": ({"lr": None}, TypeError, "lr=None: expected a number and got a NoneType"),
    "lr true": ({"lr": True}, TypeError, "lr=True"),
    "lr complex": ({"lr": 1j}, TypeError, "lr=1j"),
    "lr tensor": ({"lr": torch.tensor(0.1)}, TypeError, "lr is a tensor: .* torch.tensor\\(group"),
    "decay negative": ({"weight_decay": -0.1}, ValueError, "weight_decay=-0.1"),
    "decay nan": ({"weight_decay": float("nan")}, ValueError, "weight_decay=nan"),
    "decay none": ({"weight_decay": None}, TypeError, "weight_decay=None"),
    "layers zero": ({"layer_decay": 0}, ValueError, "layer_decay=0: expected a factor above 0"),
    "layers above one": ({"layer_decay": 1.01}, ValueError, "layer_decay=1.01"),
    "layers negative": ({"layer_decay": -0.5}, ValueError, "layer_decay=-0.5"),
    "layers text": ({"layer_decay": "0.5"}, TypeError, "layer_decay='0.5'"),
    "frozen": ({"frozen": True}, ValueError, "frozen=True: expected 'skip'.*or 'keep'"),
    "groups a list": ({"groups": [("0", 0.1)]}, TypeError, 'groups is a list: .*"backbone": 1e-5'),
    "group a list": ({"groups": {"0": [0.1]}}, TypeError, r'groups\["0"\]=\[0.1\]: expected a num'),
    "group negative": ({"groups": {"0": -1}}, ValueError, r'groups\["0"\]=-1'),
    "group's lr": ({"groups": {"0": {"lr": -1}}}, ValueError, r"groups\[\"0\"\]\['lr'\]=-1"),
    "group's decay": (
        {"groups": {"0": {"weight_decay": "no"}}},
        TypeError,
        r"groups\[\"0\"\]\['weight_decay'\]='no'",
    ),
    "group's params": (
        {"groups": {nn.Linear: {"params": []}}},
        ValueError,
        r'groups\[Linear\] has the option "params", but which parameters .* by its selector',
    ),
    "group no selector": ({"groups": {7: 0.1}}, SelectionError, "cannot select by int"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name: str) -> None:
    asked, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        param_groups(net(), **{"lr": 0.1, **asked})


def test_limits_are_allowed() -> None:
    groups = param_groups(net(), 0, weight_decay=0, layer_decay=1, groups={})
    assert [g["lr"] for g in groups] == [0.0, 0.0]


def test_nothing_trainable() -> None:
    model = net()
    fl.freeze(model)
    with pytest.raises(
        SelectionError, match=r"all 4 parameters have requires_grad=False.*unfreeze"
    ):
        param_groups(model, 0.1)
    assert len(param_groups(model, 0.1, frozen="keep")) == 1
    for frozen in ("skip", "keep"):
        with pytest.raises(SelectionError, match="ReLU has no parameters"):
            param_groups(nn.ReLU(), 0.1, frozen=frozen)  # type: ignore[arg-type]


def test_lazy_parameters_need_a_batch_first() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    with pytest.raises(SelectionError, match=r"2 parameters have no shape.*: 1\.weight.*one batch"):
        param_groups(model, 0.1)
    model(torch.ones(1, 2))
    assert len(param_groups(model, 0.1)[0]["params"]) == 4


def test_options_are_the_optimizers_own_business() -> None:
    groups = param_groups(net(), 0.1, groups={"0": {"unheard_of": 1}})
    assert torch.optim.AdamW(groups).param_groups[0]["unheard_of"] == 1
