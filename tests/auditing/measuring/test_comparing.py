"""Every way to write is seen, and nothing that leaves the bytes as they are."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline._names import named_tensors
from frostline.auditing.measuring import measure
from tests.auditing.measuring.steps import X, changed, net
from tests.auditing.measuring.surroundings import surroundings
from tests.everything import forget_other_tests


@pytest.fixture(autouse=True, scope="module")
def _alone() -> None:
    forget_other_tests()


class Writes(nn.Module):
    """Writes to a buffer in one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(4, 4), how
        self.register_buffer("kept", torch.tensor([1.0, 2.0, float("nan"), 0.0]))
        self.plain = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        WRITES[self.how](self)
        return self.layer(x)


def _give(module: Any, name: str, value: Any) -> None:
    setattr(module, name, value)


WRITES: dict[str, Callable[[Any], object]] = {
    "nothing": lambda m: None,
    "in place": lambda m: m.kept.add_(1),
    "same bytes": lambda m: m.kept.copy_(m.kept.clone()),
    "other object, same bytes": lambda m: _give(m, "kept", m.kept.clone()),
    "other object": lambda m: _give(m, "kept", m.kept + 1),
    "data": lambda m: _give(m.kept, "data", m.kept.data + 1),
    "data, same bytes": lambda m: _give(m.kept, "data", m.kept.data.clone()),
    "resized": lambda m: m.kept.resize_(2),
    "other dtype": lambda m: _give(m, "kept", m.kept.double()),
    "gone": lambda m: _give(m, "kept", None),
    "numpy": lambda m: m.kept.numpy().fill(5),
    "storage": lambda m: m.kept.untyped_storage().fill_(1),
    "sign of zero": lambda m: m.kept[3:].neg_(),
    "not a number": lambda m: m.kept.fill_(float("nan")),
    "put back": lambda m: m.kept.add_(1).sub_(1),
    "other parameter": lambda m: _give(
        m.layer, "weight", nn.Parameter(m.layer.weight.detach() + 1)
    ),
    "plain attribute": lambda m: _give(m, "plain", m.plain + 1),
}


ONE = {"kept"}
WAYS = {
    "nothing": set(), "in place": ONE, "same bytes": set(), "other object, same bytes": set(),
    "other object": ONE, "data": ONE, "data, same bytes": set(), "resized": ONE,
    "other dtype": ONE, "gone": ONE, "numpy": ONE, "storage": ONE, "sign of zero": ONE,
    "not a number": ONE,
    "put back": set(), "other parameter": {"layer.weight"}, "plain attribute": {"plain"},
}  # fmt: skip


@pytest.mark.parametrize("how", WRITES)
def test_every_way_to_write(how: str) -> None:
    model = Writes(how)
    before = surroundings([model], None, X)
    assert changed(model) == WAYS[how]
    assert surroundings([model], None, X) == before


def test_drift_is_the_largest_difference() -> None:
    model, other = net(), net()
    optimizer, its = (torch.optim.Adam(each.parameters(), lr=0.3) for each in (model, other))
    step = measure(model, optimizer, X, None, train=False)
    old = deepcopy(dict(other.state_dict()))
    other(X).mean().backward()
    its.step()
    new = other.state_dict()
    for entry in named_tensors(model):
        largest = (new[entry.name].double() - old[entry.name].double()).abs().max().item()
        assert step.drift.get(id(entry.tensor), 0.0) == largest


@pytest.mark.parametrize(
    ("how", "drift"),
    [("resized", []), ("gone", []), ("not a number", []), ("sign of zero", [0.0]),
     ("other dtype", [0.0]), ("in place", [1.0])],
)  # fmt: skip
def test_drift_where_there_is_a_number(how: str, drift: list[float]) -> None:
    step = measure(Writes(how), None, X, None, train=False)
    assert list(step.drift.values()) == drift
    assert len(step.changed) == 1
