"""Checks and measurements run the model, and the user's hooks do not see it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from frostline.accumulation.accumulate import accumulate
from frostline.accumulation.exact.unseen import unseen
from tests.accumulation.exact.cases import CASES, cut


@pytest.mark.parametrize("offload", [None, "auto"])
def test_hooks_do_not_see_the_checks(offload: Any) -> None:
    """In the first window of a model, in which they are made."""
    case = CASES["shuffled halves"]
    model, microbatches = case.build(), cut(case.big_batch(), [3, 5])
    fired: list[int] = []
    model.register_forward_hook(lambda m, i, o: fired.append(len(o)))
    accumulate(model, case.loss, microbatches, offload=offload)
    assert fired == ([8] if offload == "auto" else [3, 5])


def test_hooks_come_back_in_their_order() -> None:
    model, seen = nn.Linear(2, 2), []
    for k in range(3):
        model.register_forward_hook(lambda m, i, o, k=k: seen.append(k))
    with unseen(model):
        model(torch.zeros(1, 2))
        assert seen == []
    model(torch.zeros(1, 2))
    assert seen == [0, 1, 2]


def test_hooks_of_torch_stay() -> None:
    """They compute weights; without them the model would be another one."""
    model = nn.utils.spectral_norm(nn.Linear(3, 3))
    before = model.weight
    with unseen(model):
        model(torch.zeros(1, 3))
    assert model.weight is not before
