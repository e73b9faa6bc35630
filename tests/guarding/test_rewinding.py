"""Rewinding goes back to the last full check, bit for bit, and on from there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import Adam, Optimizer

import frostline as fl
from tests.guarding import loops
from tests.guarding.deeds import loaded, rebound, replaced, swapped, there_and_back
from tests.guarding.loops import (
    contents,
    flagged,
    head_optimizer,
    nudge,
    state_bits,
    told,
    train,
    without_guard,
)
from tests.zoo import ZOO

# --- rewind ------------------------------------------------------------------------------------


def dropout_model() -> nn.Module:
    model = ZOO["transformer"].build()
    model.encoder.requires_grad_(False)
    return model.train()


def run_on(model: nn.Module, optimizer: Optimizer, steps: int) -> None:
    entry = ZOO["transformer"]
    for _ in range(steps):
        optimizer.zero_grad()
        x, y = entry.batch()
        noise = torch.from_numpy(np.random.randn(*x.shape)).float()
        entry.loss(model, (x + noise, y)).backward()
        optimizer.step()


def everything(model: nn.Module, optimizer: Optimizer) -> tuple[object, ...]:
    random = torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()
    return contents(model), state_bits(optimizer), random


def test_rewind_to_the_last_check_and_on() -> None:
    model = dropout_model()
    optimizer = Adam(model.head.parameters(), lr=0.01)
    torch.manual_seed(5)
    np.random.seed(5)
    with told() as caught, fl.guard(model, "encoder", on_change="rewind") as guard:
        run_on(model, optimizer, 2)
        guard.check()
        then = everything(model, optimizer)
        run_on(model, optimizer, 2)
        assert everything(model, optimizer) != then
        model.encoder.layers[0].linear1.weight.data.mul_(1.1)
        run_on(model, optimizer, 1)
        assert everything(model, optimizer) == then
        run_on(model, optimizer, 3)
        ended = everything(model, optimizer)
    assert len(caught) == 1
    assert "as at the last full check" in str(caught[0].message)
    assert [c.step for c in guard.report.changes] == [5]

    twin = dropout_model()
    other = Adam(twin.head.parameters(), lr=0.01)
    torch.manual_seed(5)
    np.random.seed(5)
    run_on(twin, other, 5)
    assert everything(twin, other) == ended


def test_a_save_point_is_one_to_rewind_to() -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    with told(), fl.guard(model, on_change="rewind"):
        train(model, optimizer, 2)
        saved = {k: v.clone() for k, v in model.state_dict().items()}
        train(model, optimizer, 2, {2: nudge})
        assert contents(model) == loops.bits(saved)


@pytest.mark.parametrize("deed", [nudge, rebound, replaced, there_and_back, loaded, swapped])
def test_rewind_to_the_entry(deed: loops.Deed) -> None:
    model = flagged()
    before = contents(model)
    optimizer = head_optimizer(model)
    with told(), fl.guard(model, on_change="rewind"):
        train(model, optimizer, 2, {2: deed})
        assert contents(model) == before
        train(model, optimizer, 2)
        ended = contents(model), state_bits(optimizer)
    unattacked, twin = without_guard(2)
    assert (contents(unattacked), state_bits(twin)) == ended


def test_rewind_twice_to_the_same_check() -> None:
    model = flagged()
    optimizer = head_optimizer(model)
    with told() as caught, fl.guard(model, on_change="rewind") as guard:
        train(model, optimizer, 1)
        guard.check()
        then = contents(model)
        for _ in range(2):
            train(model, optimizer, 2, {2: nudge})
            assert contents(model) == then
    assert len(caught) == 2
