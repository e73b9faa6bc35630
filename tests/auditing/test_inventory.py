"""Counts, norms and the map, against slow counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from tests.zoo import ZOO, live


def of(model: nn.Module, **given: Any) -> dict[str, Any]:
    return fl.audit(model, **given).to_dict()


@pytest.mark.parametrize("name", ["resnet18", "bert"])
def test_counts_are_those_of_the_summary(name: str) -> None:
    entry = next(entry for key, entry in ZOO.items() if name in key)
    model = entry.build()
    next(iter(model.children())).requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    counts, summary = (
        of(model, optimizer=optimizer)["counts"],
        fl.summary(model, optimizer=optimizer),
    )
    assert counts["parameters"] == {
        "elements": summary.parameters,
        "bytes": summary.parameter_bytes,
    }
    assert counts["trainable"]["elements"] == summary.trainable
    assert counts["frozen"]["elements"] == summary.frozen
    assert counts["buffers"] == {"elements": summary.buffers, "bytes": summary.buffer_bytes}
    assert counts["gradient_bytes"] == summary.gradient_bytes
    assert (counts["optimizer"], counts["optimizer_bytes"]) == ("AdamW", summary.optimizer_bytes)


def test_the_map_has_every_module_once_parents_first() -> None:
    model = ZOO["resnet18"].build()
    places = of(model)["map"]
    assert [place["name"] for place in places] == [name for name, _ in model.named_modules()]
    assert places[0]["parent"] == -1
    for i, place in enumerate(places[1:], 1):
        assert place["parent"] < i
        assert place["name"].rpartition(".")[0] == places[place["parent"]]["name"]
        module = model.get_submodule(place["name"])
        assert place["parameters"] == sum(p.numel() for p in module.parameters())
        own = [*module.parameters(), *module.buffers()]
        assert place["bytes"] == sum(t.numel() * t.element_size() for t in own)


def test_states_on_the_map() -> None:
    model = live(nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.ReLU()), nn.Linear(2, 2), nn.Tanh(),
        nn.LayerNorm(2),
    ))  # fmt: skip
    model[0].requires_grad_(False)
    model[3].bias.requires_grad_(False)
    fl.freeze(model, "3.weight", params=True)
    found = {place["name"]: place for place in of(model)["map"]}
    states = {name: place["state"] for name, place in found.items()}
    assert states == {
        "": "mixed", "0": "frozen", "0.0": "frozen", "0.1": "frozen", "0.2": "frozen",
        "1": "trainable", "2": "none", "3": "frozen",
    }  # fmt: skip
    assert [name for name, place in found.items() if place["leaky"]] == ["", "0", "0.1"]
    assert [name for name, place in found.items() if place["held"]] == ["3"]


def test_a_tied_parameter_is_counted_once() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    model["head"].weight = model["embed"].weight
    found = {place["name"]: place["parameters"] for place in of(model)["map"]}
    assert found == {"": 6, "embed": 6, "head": 0}


def test_norms_that_do_the_same_share_a_row() -> None:
    model = live(nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.LayerNorm(2)))
    fl.freeze(model, "1")
    rows = of(model)["norms"]
    assert [(row["names"], row["held"], len(row["writes"])) for row in rows] == [
        (["0"], False, 3), (["1"], True, 0), (["2"], False, 0),
    ]  # fmt: skip
