"""How a summary reads: as text, as a table, as HTML, as JSON."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from torch import nn

import frostline as fl
from frostline.summaries import summary
from frostline.summaries.result import Summary
from tests.summaries import measuring
from tests.zoo import ZOO

SCHEMA = json.loads(
    (Path(__file__).parents[2] / "docs" / "formats" / "summary-v1.schema.json").read_text()
)


def block(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())


def net() -> nn.ModuleDict:
    """A backbone of 12 equal blocks and a wider one, a head."""
    blocks = nn.Sequential(*(block() for _ in range(12)), nn.Linear(4, 8), block(8))
    return nn.ModuleDict({"backbone": blocks, "head": nn.Linear(8, 2)})


def names(text: str) -> list[str]:
    """The first column of a table."""
    return [line.split()[0] for line in text.splitlines()[1:]]


def flagged(name: str) -> Summary:
    model = measuring.build(ZOO[name], "flags")
    optimizer = torch.optim.AdamW(model.parameters())
    return summary(model, optimizer=optimizer, batch=ZOO[name].batch())


def test_the_text() -> None:
    model = net()
    model["backbone"].requires_grad_(False)
    assert (
        str(summary(model))
        == """\
Summary of ModuleDict: 56 modules

                         elements     memory
  parameters                  482     1.9 kB
    trainable                  18       72 B
    frozen                    464     1.9 kB
  buffers                     125      552 B
  together                    607     2.5 kB

  a training step adds
  gradients                               72 B
  state, if it is AdamW                  152 B  predicted
  state, if it is SGD with momentum       72 B  predicted
  saved activations                    unknown  pass batch= to predict them

  module                class             parameters  memory  state
  (root)                ModuleDict               482  2.5 kB  mixed
  backbone              Sequential               464  2.4 kB  leaky
  backbone.{0-11}       12 × Sequential          336  1.8 kB  leaky
  backbone.{0-11,13}.1  13 × BatchNorm1d         112  1.0 kB  leaky
  backbone.12           Linear                    40   160 B  frozen
  backbone.13           Sequential                88   424 B  leaky
  head                  Linear                    18    72 B  trainable

  leaky: frozen to the eye, and changed by the next training step
    backbone: 13 BatchNorm1d in training mode write running_mean, running_var,
      num_batches_tracked
    to hold what can be held: fl.freeze(model, fl.FLAGGED)"""
    )


@pytest.mark.parametrize("name", ["resnet18", "lstm", "transformer"])
def test_it_fits_80_columns_and_the_schema(name: str) -> None:
    found = flagged(name)
    for text in (str(found), found.table(depth=None), found.table(only="leaky")):
        assert max(map(len, text.splitlines())) <= 80
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    jsonschema.validate(document, SCHEMA)
    assert len(document["rows"]) == document["modules"]
    document["rows"][0]["state"] = "melted"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_a_summary_without_anything_fits_the_schema() -> None:
    found = summary(nn.ReLU())
    jsonschema.validate(json.loads(json.dumps(found.to_dict())), SCHEMA)
    assert names(found.table()) == ["(root)"]
    assert found.optimizer_estimates == {"AdamW": 0, "SGD with momentum": 0}


def test_depth() -> None:
    found = summary(net())
    assert names(found.table(depth=0)) == ["(root)"]
    assert names(found.table(depth=1)) == ["(root)", "backbone", "head"]
    deeper = ["backbone.{0-11}", "backbone.12", "backbone.13"]
    assert names(found.table()) == ["(root)", "backbone", *deeper, "head"]
    assert "backbone.{0-11}.0" in names(found.table(depth=3))
    assert found.table(depth=3) == found.table(depth=None)


def test_it_goes_deeper_only_where_something_is_mixed_or_leaks() -> None:
    model = nn.ModuleDict({"body": nn.Sequential(nn.Sequential(block(), block()), block())})
    assert names(summary(model).table(depth=1)) == ["(root)", "body"]
    model["body"][0][1][0].bias.requires_grad_(False)
    mixed = ["(root)", "body", "body.0", "body.0.0", "body.0.1", "body.0.1.0", "body.0.1.1"]
    assert names(summary(model).table(depth=1)) == [*mixed, "body.1"]
    model.requires_grad_(False)
    # Rows that are there for a leak stand together whatever their size.
    leaky = ["(root)", "body", "body.{0-1}", "body.0.{0-1}", "body.0.{0-1}.1", "body.1.1"]
    assert names(summary(model).table(depth=1)) == leaky


def test_only() -> None:
    model = net()
    model["backbone"][:3].requires_grad_(False)
    fl.freeze(model, "backbone.12")
    found = summary(model)
    assert names(found.table(only="mixed")) == ["(root)", "backbone"]
    assert names(found.table(only="leaky")) == ["backbone.{0-2}", "backbone.{0-2}.1"]
    assert names(found.table(only="held")) == ["backbone.12"]
    assert names(found.table(only="trainable"))[0] == "backbone.{3-11}"
    assert names(found.table(only="frozen"))[0] == "backbone.{0-2}"
    assert summary(nn.Linear(2, 2)).table(only="held") == "  no module is like that"


def test_sort() -> None:
    model = nn.Sequential(*(nn.Linear(2, width, bias=False) for width in (2, 9, 4)))
    model.extend([nn.BatchNorm1d(1).double(), *(nn.ReLU() for _ in range(6)), nn.Linear(1, 1)])
    found = summary(model)
    assert names(found.table(sort="parameters")) == ["(root)", "1", "2", "0", "3", "10"]
    assert names(found.table(sort="memory")) == ["(root)", "1", "3", "2", "0", "10"]
    assert names(found.table(sort="name")) == ["(root)", "0", "1", "2", "3", "10"]


@pytest.mark.parametrize(
    ("switch", "value"),
    [("depth", -1), ("depth", "2"), ("depth", True), ("only", "cold"), ("sort", "size")],
)
def test_unknown_switches(switch: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{switch}={value!r}: expected"):
        summary(net()).table(**{switch: value})


def test_long_names_are_shortened_in_the_middle() -> None:
    model: nn.Module = nn.Linear(2, 2)
    for i in range(9):
        model = nn.ModuleDict({f"a_rather_long_name_{'abcdefghi'[i]}": model})
    text = summary(model).table(depth=None)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" in text.splitlines()[-1]
    assert "a_rather_long_name_a  Linear" in text.splitlines()[-1]


class Cells(HTMLParser):
    """The text of all cells, and the tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_html_has_what_the_text_has_and_nothing_of_the_users_becomes_markup() -> None:
    hostile = "<script>alert(1)</script>&\"'"
    evil = type(hostile, (nn.Sequential,), {})
    model = evil()
    model.add_module(hostile, block().requires_grad_(False))
    model.add_module("head", nn.Linear(4, 2))
    found = summary(model, batch=torch.randn(3, 4))
    page = Cells(found._repr_html_())
    assert "table" in page.tags
    assert page.tags.isdisjoint({"script", "pre", "img"})
    assert hostile in page.texts
    assert f"{hostile}.1.running_mean" in page.texts
    assert "model(batch), keeping the sum of its output" in " ".join(page.texts)
    for cell in ("38", "leaky", "trainable"):
        assert cell in page.texts


def calls(model: nn.Module) -> int:
    """How many Python functions a summary of the model and its text call."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        str(summary(model))
    finally:
        sys.setprofile(None)
    return count


def many(count: int) -> nn.Sequential:
    """Modules in blocks of four in groups of fifty."""
    groups = [nn.Sequential(*(block(1) for _ in range(50))) for _ in range(count // 200)]
    return nn.Sequential(*groups).requires_grad_(False)


def test_the_cost_grows_with_the_number_of_modules() -> None:
    calls(many(200))  # what is found once for a class is found now
    assert calls(many(1600)) < 4.3 * calls(many(400))


def test_twenty_thousand_modules_in_a_page() -> None:
    text = str(summary(many(20_000)))
    assert len(text.splitlines()) < 30
    assert "{0-99}.{0-49}.1  5,000 × BatchNorm1d" in text
    assert max(map(len, text.splitlines())) <= 80


def test_many_names_without_numbers_in_a_page() -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    model = nn.ModuleDict({f"_{a}{b}": block(1) for a in letters for b in letters})
    found = summary(model.requires_grad_(False))
    assert len(str(found).splitlines()) < 60
    assert "lines more: see .table() and .rows" in str(found)
    assert len(found.table().splitlines()) == 1 + 1 + 3 * 26**2


def test_the_whole_text_with_another_tree() -> None:
    found = summary(net())
    assert found.text() == str(found)
    head, _, tree = found.text(depth=0, sort="name").partition("  module")
    assert str(found).startswith(head)
    assert tree.splitlines()[1:] == found.table(depth=0).splitlines()[1:]
    many_names = nn.ModuleDict({f"_{i * 'a'}": nn.Linear(1, 1) for i in range(50)})
    assert (
        len(summary(many_names).text().splitlines())
        == len(str(summary(many_names)).splitlines()) + 20
    )
