"""What ``groups=`` asks for: the first that matches wins, and nothing written there is idle."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import SelectionError
from frostline.parameter_groups import param_groups
from tests.parameter_groups.seen import layout, members, rates
from tests.zoo import ZOO


def net() -> nn.ModuleDict:
    backbone = nn.ModuleDict({f"layer{i}": nn.Linear(2, 2) for i in (1, 10)})
    return nn.ModuleDict({"backbone": backbone, "drop": nn.Dropout(), "head": nn.Linear(2, 2)})


def grouped(model: nn.Module, groups: dict[Any, Any], **asked: Any) -> dict[str, list[str]]:
    return members(model, param_groups(model, 0.1, groups=groups, **asked))


def linear(*names: str) -> list[str]:
    return [f"{name}.{tensor}" for name in names for tensor in ("weight", "bias")]


def test_the_first_that_matches_wins() -> None:
    model = net()
    groups = {"backbone.layer1": 0.3, "backbone": 0.2, "**.weight": 0.4}
    assert grouped(model, groups) == {
        "backbone.layer1": linear("backbone.layer1"),
        "backbone": linear("backbone.layer10"),
        "**.weight": ["head.weight"],
        "rest": ["head.bias"],
    }
    found = {g["name"]: g["lr"] for g in param_groups(model, 0.1, groups=groups)}
    assert found == {"backbone.layer1": 0.3, "backbone": 0.2, "**.weight": 0.4, "rest": 0.1}


@pytest.mark.parametrize(
    ("selector", "label", "chosen"),
    [
        (re.compile(r"backbone\.layer1"), r"re.compile('backbone\\.layer1')", ["backbone.layer1"]),
        (
            ("head", "backbone.layer10"),
            '["head", "backbone.layer10"]',
            ["backbone.layer10", "head"],
        ),
        (nn.Linear, "Linear", ["backbone.layer1", "backbone.layer10", "head"]),
        (None, "the whole model", ["backbone.layer1", "backbone.layer10", "head"]),
    ],
    ids=["pattern", "tuple", "type", "all"],
)
def test_any_selector_that_can_be_a_key(selector: Any, label: str, chosen: list[str]) -> None:
    assert grouped(net(), {selector: 0.3})[label] == linear(*chosen)


def test_functions_modules_and_flags_select_as_well() -> None:
    model = net()
    model["head"].weight.requires_grad_(False)
    assert grouped(model, {model["head"]: 1.0})["the module Linear"] == ["head.bias"]
    assert grouped(model, {lambda name, _: name == "head": 1.0})["<lambda>"] == ["head.bias"]
    flagged = grouped(model, {fl.FLAGGED: 0.0}, frozen="keep")
    assert flagged["fl.FLAGGED"] == ["head.weight"]


def test_options_go_to_the_optimizer() -> None:
    model = net()
    groups = {"head": {"lr": 0.3, "betas": (0.5, 0.9), "weight_decay": 0.7}, "backbone": {}}
    optimizer = torch.optim.AdamW(param_groups(model, 0.1, weight_decay=0.2, groups=groups))
    found = {g["name"]: (g["lr"], g["weight_decay"], g["betas"]) for g in optimizer.param_groups}
    assert found == {
        "backbone": (0.1, 0.2, (0.9, 0.999)),
        "backbone, no decay": (0.1, 0.0, (0.9, 0.999)),
        "head": (0.3, 0.7, (0.5, 0.9)),
        "head, no decay": (0.3, 0.0, (0.5, 0.9)),
    }
    # A group's own weight decay also stands where the others have none, and the other way round.
    own = rates(model, param_groups(model, 0.1, groups={"head": {"weight_decay": 0.7}}))
    assert own["head.weight"] == (0.1, 0.7)
    assert own["backbone.layer1.weight"] == (0.1, 0.0)
    none = param_groups(model, 0.1, weight_decay=0.2, groups={"head": {"weight_decay": 0}})
    assert members(model, none)["head"] == linear("head")


def test_groups_do_not_share_their_dict_with_the_caller() -> None:
    asked = {"head": {"lr": 0.3, "name": "top"}}
    groups = param_groups(net(), 0.1, groups=asked)
    groups[-1]["lr"] = 7
    assert asked == {"head": {"lr": 0.3, "name": "top"}}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"haed": 0.3}, r'"haed" matches nothing. The nearest names are: \'head\''),
        ({"drop": 0.3}, r'"drop" selects no parameter of this ModuleDict'),
        (
            {"head": 0.3, "backbone": 0.2, "backbone.layer1": 0.1},
            r'"backbone.layer1" stands in an earlier group \(backbone\).* narrower selector first',
        ),
        (
            {"backbone": 0.2, "head": 0.3, nn.Linear: 0.1},
            r'"Linear" stands in an earlier group \(backbone, head\)',
        ),
    ],
    ids=["typo", "nothing to train", "taken", "taken by two"],
)
def test_what_would_have_no_effect_is_refused(groups: dict[Any, float], message: str) -> None:
    with pytest.raises(SelectionError, match=message):
        param_groups(net(), 0.1, groups=groups)


TIED = {
    "gpt2": ("transformer", "transformer.wte.weight (transformer) = lm_head.weight (rest)"),
    "t5": (
        "encoder",
        "shared.weight (rest) = encoder.embed_tokens.weight (encoder) = "
        "decoder.embed_tokens.weight (rest) = lm_head.weight (rest)",
    ),
}


@pytest.mark.parametrize("name", TIED)
def test_a_tied_tensor_has_one_learning_rate(name: str) -> None:
    model = ZOO[name].make()
    part, told = TIED[name]
    with pytest.raises(SelectionError, match=re.escape(told)) as refused:
        param_groups(model, 0.1, groups={part: 0.2})
    # The line that the message says to write.
    line = re.search(r"groups=\{(\(.*\)): ", str(refused.value))
    assert line is not None
    places = tuple(re.findall(r"'([^']+)'", line[1]))
    groups = param_groups(model, 0.1, groups={places: 0.3, part: 0.2})
    tied = [g for g in groups if g["params"][0] is model.get_input_embeddings().weight]
    assert [(len(g["params"]), g["lr"]) for g in tied] == [(1, 0.3)]
    # Where all places ask for the same, nothing is ambiguous.
    same = param_groups(model, 0.2, groups={part: 0.2})
    assert sorted(rates(model, same)) == sorted(n for n, _ in model.named_parameters())


def test_a_shared_module_is_one_place() -> None:
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleDict({"c": shared, "d": nn.Linear(2, 2)})})
    assert grouped(model, {"b": 0.3}) == {"b": linear("a", "b.d")}


def test_wrappers_are_seen_through() -> None:
    model = net()
    plain = param_groups(model, 0.1, weight_decay=0.2, groups={"head": 1.0})
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        groups = param_groups(wrapped, 0.1, weight_decay=0.2, groups={"head": 1.0})
        assert layout(groups) == layout(plain)
        assert [g["name"] for g in groups] == [g["name"] for g in plain]
