"""Elements and bytes, for the model and for each module, against a slow count of storages."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.summaries import summary
from tests.summaries import measuring
from tests.zoo import BREADTH, ZOO

ALL = {**ZOO, **BREADTH}
QUICK = ("two_branches", "mlp_bn1d", "transformer", "lstm", "gru")


def slow(tensors: Iterable[Tensor]) -> tuple[int, int]:
    """Elements and bytes of the storages behind tensors that are all of their storage."""
    storages = {t.untyped_storage().data_ptr(): (t.numel(), t.nbytes) for t in tensors}
    assert all(t.nbytes == t.untyped_storage().nbytes() for t in tensors)
    return sum(n for n, _ in storages.values()), sum(size for _, size in storages.values())


def parameters(module: nn.Module, trainable: bool) -> list[Tensor]:
    return [p for p in module.parameters() if p.requires_grad is trainable]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ALL]
)
def test_counts_are_those_of_a_slow_count(name: str) -> None:
    model = measuring.build(ALL[name], "flags")
    found = summary(model)
    trainable, frozen = slow(parameters(model, True)), slow(parameters(model, False))
    assert (found.trainable, found.trainable_bytes) == trainable
    assert (found.frozen, found.frozen_bytes) == frozen
    assert (found.parameters, found.parameter_bytes) == slow(list(model.parameters()))
    assert (found.buffers, found.buffer_bytes) == slow(list(model.buffers()))
    assert found.bytes == found.parameter_bytes + found.buffer_bytes
    assert found.modules == len(list(model.modules()))
    for row, (path, module) in zip(found.rows, model.named_modules(), strict=True):
        assert row.name == path
        assert row.type == type(module).__name__
        assert row.trainable == slow(parameters(module, True))[0]
        assert row.frozen == slow(parameters(module, False))[0]
        assert (row.buffers, row.bytes) == (
            slow(list(module.buffers()))[0],
            slow([*module.parameters(), *module.buffers()])[1],
        )


class Tied(nn.Module):
    """An embedding whose weight is the head's too, and a block that stands at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def test_what_is_tied_counts_once_in_all_and_in_each_of_its_places() -> None:
    found = summary(Tied())
    assert found.parameters == 40 + 20
    assert found.gradient_bytes == 4 * 60
    assert {row.name: row.parameters for row in found.rows} == {
        "": 60,
        "embed": 40,
        "first": 20,
        "head": 40,
    }


def test_views_of_one_storage() -> None:
    flat = torch.zeros(100)
    model = nn.Module()
    model.one = nn.Parameter(flat[:30].view(5, 6))
    model.two = nn.Parameter(flat[20:50])  # ten of them are in the first, too
    model.register_buffer("three", flat[40:60])  # ten of them are in the second
    model.register_buffer("column", torch.zeros(50, 4)[:, 1])
    found = summary(model)
    assert (found.parameters, found.parameter_bytes) == (50, 200)
    assert (found.buffers, found.buffer_bytes) == (10 + 50, 240)
    # Gradients are of each parameter's own shape, whatever it looks at.
    assert found.gradient_bytes == 4 * (30 + 30)


def test_what_is_trainable_under_one_of_its_names_is_trainable() -> None:
    model = nn.Linear(4, 4, bias=False)
    model.same = nn.Parameter(model.weight.data[:2], requires_grad=False)
    found = summary(model)
    assert (found.trainable, found.frozen, found.parameters) == (16, 0, 16)
    model.weight.requires_grad_(False)
    model.same.requires_grad_(True)
    found = summary(model)
    assert (found.trainable, found.frozen, found.parameters) == (8, 8, 16)
    assert found.leaky == ["weight"]
    assert "shares memory with something trainable: weight" in str(found)


def test_tensors_without_memory_count_by_shape() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1000, 1000), nn.BatchNorm1d(1000))
    model[0].other = model[0].weight
    found = summary(model)
    assert found.parameters == 1_001_000 + 2000
    assert (found.bytes, found.buffers) == (4 * 1_003_000 + 8000 + 8, 2001)


def test_what_has_no_shape_yet_is_named() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2), nn.LazyBatchNorm1d())
    optimizer = torch.optim.AdamW(model.parameters())
    found = summary(model, optimizer=optimizer, batch=torch.randn(3, 8))
    assert found.parameters == 10
    assert found.lazy[:3] == ("0.weight", "0.bias", "2.weight")
    assert found.activation_bytes is None
    assert "6 tensors without a shape before the first forward" in found.notes[0]
    assert found.optimizer_bytes == 2 * 40 + 8
    model(torch.randn(3, 8))
    assert summary(model).lazy == ()


def test_expanded_parameters_take_what_is_behind_them() -> None:
    model = nn.Module()
    model.scale = nn.Parameter(torch.ones(1).expand(7))
    found = summary(model)
    assert (found.parameters, found.bytes, found.gradient_bytes) == (1, 4, 28)


def test_wrappers_are_seen_through() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    found = summary(nn.DataParallel(model))
    assert [row.name for row in found.rows] == ["", "", "0"]
    assert [row.parameters for row in found.rows] == [20, 20, 20]


def test_states_of_modules() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()
    )
    model[0].requires_grad_(False)
    fl.freeze(model, "2")
    found = {row.name: (row.state, row.held) for row in summary(model).rows}
    assert found == {
        "": ("mixed", False),
        "0": ("frozen", False),
        "0.0": ("frozen", False),
        "0.1": ("frozen", False),
        "1": ("trainable", False),
        "2": ("frozen", True),
        "3": ("none", False),
    }


def test_held_says_what_a_part_covers_whole() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    model[1][1].requires_grad_(False)
    fl.freeze(model, ["0", "1.0"])
    rows = {row.name: (row.state, row.held) for row in summary(model).rows}
    assert rows[""] == rows["1"] == rows["1.1"] == ("frozen", False)
    assert rows["0"] == rows["1.0"] == ("frozen", True)


def test_held_is_not_what_is_mixed() -> None:
    model = ZOO["two_branches"].build()
    fl.freeze(model, "trunk", exclude="trunk.3.1")
    held = {row.name for row in summary(model).rows if row.held}
    assert {"trunk.0", "trunk.1", "trunk.0.1", "trunk.3.0"} <= held
    assert held.isdisjoint({"", "trunk", "trunk.3", "trunk.3.1", "main"})
