"""A hundred architectures, frozen in three ways: what was predicted is what a real step changes.

`make test` runs those of `FEW`, `make zoo` all of them. None may be wrong.
"""

from __future__ import annotations

import pytest
from torch import nn

import frostline as fl
from frostline.auditing.predicting import NotPredictable
from frostline.selection import select
from tests.auditing.predicting.architectures import ARCHITECTURES, FEW, backbone_of
from tests.auditing.predicting.truth import adamw, compared, sgd
from tests.zoo import Entry, fresh

WAYS = ("flag", "eval", "held")
SMALL = 8  # so many of FEW are
_outcomes: dict[tuple[str, str], str] = {}


def freeze(model: nn.Module, entry: Entry, way: str) -> None:
    """As people do: the flag alone, the flag and eval(), or fl.freeze."""
    backbone = backbone_of(model, entry)
    if way == "held":
        fl.freeze(model, backbone)
        return
    found = select(model, backbone)
    for tensor in found.tensors:
        if tensor.kind == "parameter":
            tensor.tensor.requires_grad_(False)
    for _, module in found.modules if way == "eval" else ():
        module.eval()


def outcome(name: str, way: str) -> str:
    """Whether all was decided; what was said must be so."""
    entry = ARCHITECTURES[name]
    model = fresh(entry).train()
    freeze(model, entry, way)
    make = adamw if list(ARCHITECTURES).index(name) % 2 else sgd
    try:
        found = compared(model, make, entry.batch(), entry.loss)
    except NotPredictable as why:
        return f"not decided: {why}"
    assert found.wrong == set()
    return f"not decided: {found.undecided}" if found.undecided else "decided"


@pytest.mark.parametrize("name", FEW)
def test_a_real_step_changes_what_was_predicted(name: str) -> None:
    # Of a bias before batch norm nobody can say under SGD whether rounding leaves anything.
    expected = "not decided" if name == "two_branches" else "decided"
    at = FEW.index(name)
    ways = WAYS if at < SMALL else (WAYS[at % 3],)  # of the larger ones here one way each
    assert {outcome(name, way).partition(":")[0] for way in ways} == {expected}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("way", WAYS)
def test_of_a_hundred(name: str, way: str) -> None:
    _outcomes[name, way] = outcome(name, way)


@pytest.mark.slow
def test_at_least_95_of_100_are_decided() -> None:
    """Of all that ran before in this process, in the order of the file."""
    if len(_outcomes) < len(ARCHITECTURES) * len(WAYS):
        pytest.skip("not all of them ran, or not in this process")
    open_ = {key: why for key, why in _outcomes.items() if why != "decided"}
    assert len(open_) <= 0.05 * len(_outcomes), open_


def test_there_are_a_hundred() -> None:
    assert len(ARCHITECTURES) == 100
    assert set(FEW) <= set(ARCHITECTURES)
    assert len(FEW) == 15
