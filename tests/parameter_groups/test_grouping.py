"""Every trainable parameter in exactly one group, with what was asked for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import frostline as fl
from frostline.errors import FrostlineWarning, SelectionError
from frostline.parameter_groups import param_groups
from tests.parameter_groups.seen import layout, members, rates
from tests.zoo import ZOO, live


def trainable(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


@pytest.mark.parametrize("name", ZOO)
def test_every_trainable_parameter_stands_in_one_group(name: str) -> None:
    model = live(ZOO[name].make())
    assert sorted(rates(model, param_groups(model, 0.1))) == sorted(trainable(model))
    everything = param_groups(model, 0.1, weight_decay=0.05)
    assert sorted(rates(model, everything)) == sorted(trainable(model))
    kept = layout(everything)
    with fl.freeze(model, ZOO[name].backbone, seal=False):
        left = trainable(model)
        assert 0 < len(left) < sum(len(ids) for ids, *_ in kept)
        assert sorted(rates(model, param_groups(model, 0.1, weight_decay=0.05))) == sorted(left)
        assert layout(param_groups(model, 0.1, weight_decay=0.05, frozen="keep")) == kept


@pytest.mark.parametrize("name", ["resnet18", "bert", "gpt2", "t5", "mlp_bn1d"])
def test_layers_and_named_groups_leave_each_parameter_in_one_group(name: str) -> None:
    model = live(ZOO[name].make())
    head = dict.fromkeys([ZOO[name].head], 0.7)
    asked: dict[str, Any] = {"weight_decay": 0.05, "layer_decay": 0.5, "groups": head}
    kept = layout(param_groups(model, 0.1, **asked, frozen="keep"))
    with fl.freeze(model, ZOO[name].backbone, seal=False):
        found = rates(model, param_groups(model, 0.1, **asked))
        assert sorted(found) == sorted(trainable(model))
        assert layout(param_groups(model, 0.1, **asked, frozen="keep")) == kept
    whole = rates(model, param_groups(model, 0.1, **asked))
    assert all(whole[parameter] == rate for parameter, rate in found.items())


def test_order_is_that_of_the_model() -> None:
    model = live(ZOO["resnet18"].make())
    position = {id(p): i for i, p in enumerate(model.parameters())}
    for asked in ({}, {"layer_decay": 0.5}, {"groups": {"fc": 1.0, "conv1": 2.0}}):
        groups = param_groups(model, 0.1, weight_decay=0.05, **asked)
        inside = [[position[id(p)] for p in group["params"]] for group in groups]
        assert all(places == sorted(places) for places in inside)
        assert [places[0] for places in inside] == sorted(places[0] for places in inside)


def test_a_group_says_what_it_is() -> None:
    net = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(2, 2)), "head": nn.Linear(2, 2)})

    def names(**asked: Any) -> list[str]:
        return [group["name"] for group in param_groups(net, 0.1, **asked)]

    assert names() == ["model"]
    assert names(weight_decay=0.1) == ["model", "model, no decay"]
    assert names(groups={"head": 1.0}) == ["rest", "head"]
    assert names(layer_decay=0.5) == ["layer 0", "layer 1"]
    assert names(groups={"backbone": {"name": "trunk", "weight_decay": 0.1}}, layer_decay=0.5) == [
        "trunk, layer 0",
        "trunk, layer 0, no decay",
        "rest, layer 1",
    ]


def test_numbers_of_numpy_become_plain() -> None:
    import numpy as np

    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    groups = param_groups(
        net,
        np.float32(0.1),
        weight_decay=np.float64(0.5),
        layer_decay=np.float32(0.5),
        groups={"1": np.int64(1)},
    )
    assert {type(g[key]) for g in groups for key in ("lr", "weight_decay")} == {float}


def test_the_model_is_not_changed() -> None:
    model = live(ZOO["vit_tiny"].make())
    part = fl.freeze(model, "blocks.0")
    flags = [p.requires_grad for p in model.parameters()]
    digest, modes = fl.digest(model), [m.training for m in model.modules()]
    param_groups(model, 0.1, weight_decay=0.05, layer_decay=0.5)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [m.training for m in model.modules()] == modes
    assert fl.digest(model) == digest
    assert part.ok


def test_a_frozen_named_group_is_told() -> None:
    model = live(ZOO["resnet18"].make())
    fl.freeze(model, "layer4", seal=False)
    asked = {"layer4": 0.01, "fc": 0.2}
    with pytest.warns(FrostlineWarning, match='every parameter of "layer4" is frozen') as told:
        groups = param_groups(model, 0.1, groups=asked)
    assert told[0].filename == __file__
    assert list(members(model, groups)) == ["rest", "fc"]
    kept = param_groups(model, 0.1, groups=asked, frozen="keep")
    assert list(members(model, kept)) == ["rest", "layer4", "fc"]
    fl.unfreeze(model, "layer4.1")
    assert list(members(model, param_groups(model, 0.1, groups=asked))) == ["rest", "layer4", "fc"]


def test_a_frozen_rest_is_no_surprise() -> None:
    model = live(ZOO["mlp_bn1d"].make())
    fl.freeze(model, "backbone", seal=False)
    assert list(members(model, param_groups(model, 0.1, groups={"head": 0.2}))) == ["head"]


def test_integers_stay_out_since_nothing_trains_them() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    net[0].weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    for frozen in ("skip", "keep"):
        assert list(rates(net, param_groups(net, 0.1, frozen=frozen))) == ["1.weight"]


NAMES = ["a", "b", "a1", "1"]
MAKE = {
    "linear": lambda: nn.Linear(2, 2),
    "bare": lambda: nn.Linear(2, 2, bias=False),
    "norm": lambda: nn.BatchNorm1d(2),
    "embedding": lambda: nn.Embedding(2, 2),
}


@st.composite
def models(draw: st.DrawFn) -> nn.Module:
    """Two levels of modules whose names differ by little, some tied, some frozen."""
    net, square = nn.ModuleDict(), []
    for outer in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)):
        net[outer] = nn.ModuleDict()
        for inner in draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)):
            kind = draw(st.sampled_from(sorted(MAKE)))
            net[outer][inner] = MAKE[kind]()
            square += [net[outer][inner]] if kind != "norm" else []
    if len(square) > 1 and draw(st.booleans()):
        square[-1].weight = square[0].weight
    for parameter in net.parameters():
        parameter.requires_grad_(draw(st.integers(0, 3)) > 0)
    return net


def slowly(
    model: nn.Module, asked: dict[str, float], no_decay: str | None, skip: bool
) -> dict[int, tuple[float, float]] | None:
    """Learning rate and decay of each parameter, name by name; None where that is impossible."""
    at_places: dict[int, set[int]] = {}
    spared: set[int] = set()
    everywhere = list(model.named_parameters(remove_duplicate=False))
    for name, parameter in everywhere:
        hits = [i for i, key in enumerate(asked) if f"{name}.".startswith(f"{key}.")]
        at_places.setdefault(id(parameter), set()).add(min(hits, default=len(asked)))
        by_name = no_decay is not None and f"{name}.".startswith(f"{no_decay}.")
        if by_name or (no_decay is None and parameter.dim() < 2):
            spared.add(id(parameter))
    rates = [*asked.values(), 0.1]
    tied_apart = any(len({rates[i] for i in places}) > 1 for places in at_places.values())
    won = {min(places) for places in at_places.values()}
    wanted = {id(p) for _, p in everywhere if p.requires_grad or not skip}
    if tied_apart or not won.issuperset(range(len(asked))) or not wanted:
        return None
    return {key: (rates[min(at_places[key])], 0.0 if key in spared else 0.5) for key in wanted}


@pytest.mark.filterwarnings("ignore:every parameter of:frostline.errors.FrostlineWarning")
@given(st.data())
@settings(max_examples=100, deadline=None)
def test_groups_are_what_the_slow_way_says(data: st.DataObject) -> None:
    model = data.draw(models())
    tensors = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    known = [name for name, _ in model.named_modules() if name] + tensors
    picked = data.draw(st.lists(st.sampled_from(known), max_size=4, unique=True))
    asked = {name: data.draw(st.sampled_from([0.1, 0.2, 0.3])) for name in picked}
    no_decay = data.draw(st.none() | st.sampled_from(known))
    frozen = data.draw(st.sampled_from(["skip", "keep"]))
    expected = slowly(model, asked, no_decay, frozen == "skip")

    def found() -> list[dict[str, Any]]:
        choice = ... if no_decay is None else no_decay
        return param_groups(
            model, 0.1, weight_decay=0.5, no_decay=choice, groups=asked, frozen=frozen
        )

    if expected is None:
        with pytest.raises(SelectionError):
            found()
        return
    groups = found()
    flat = [
        (id(p), (group["lr"], group["weight_decay"])) for group in groups for p in group["params"]
    ]
    assert len(flat) == len(dict(flat))
    assert dict(flat) == expected
