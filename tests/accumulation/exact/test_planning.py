"""``offload="auto"``: every way is the big batch, and the fastest that fits is taken."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import nn

from frostline.accumulation import plan
from frostline.accumulation.accumulate import accumulate
from frostline.accumulation.exact.engines import BigBatch, Engine, Joined, Windowed
from frostline.accumulation.exact.forwards import Forwards
from frostline.accumulation.exact.planning import Plan, plan_for
from frostline.accumulation.exact.window import exact
from frostline.lockstep.storing import DiskStore, HostStore
from tests.accumulation.exact.cases import CASES, cut, size_of
from tests.accumulation.exact.truth import assert_is_big_batch, outcome
from tests.zoo import ZOO, fresh

ENGINES: dict[str, Any] = {
    "big batch": BigBatch,
    "blocks run again": lambda: BigBatch(checkpointed=True),
    "saved tensors on disk": lambda: BigBatch(DiskStore()),
    "in step, saved tensors elsewhere": lambda: Joined(HostStore()),
    "windowed, host": lambda: Windowed(HostStore()),
}
NAMES = (
    "timm resnet, bottleneck",
    "timm mobilenetv3",
    "unet",
    "checkpointed",
    "instance norm, tracked",
    "discriminator, twice",
)


@pytest.mark.parametrize("way", ENGINES)
@pytest.mark.parametrize("name", NAMES)
def test_every_way_is_the_big_batch(name: str, way: str) -> None:
    case, engine = CASES[name], ENGINES[way]()
    model, batch = case.build(), case.big_batch()
    sizes = [1, 3, 4] if size_of(batch) == 8 else [5, 11]
    microbatches = cut(batch, sizes)
    weights = [size / sum(sizes) for size in sizes]
    loss = exact(Forwards(model, case.loss, microbatches, weights), engine, None)
    assert_is_big_batch(case, outcome(model, loss, microbatches))


def planned(memory: int | None, *, can_join: bool = True, name: str = "unet") -> Plan:
    case = CASES[name]
    microbatches = cut(case.big_batch(), [4, 4])
    forwards = Forwards(case.build(), case.loss, microbatches, [0.5, 0.5])
    return plan_for(forwards, memory, can_join=can_join)


def test_the_first_that_fits_is_taken() -> None:
    ways = planned(1 << 40).ways
    assert [way.fits for way in ways] == [True] * len(ways)
    assert len(ways) == 4
    for way in ways:
        chosen = planned(way.peak).chosen
        assert chosen.name == next(other.name for other in ways if other.peak <= way.peak)


def test_if_nothing_fits_the_smallest_is_taken_and_that_is_said() -> None:
    plan = planned(1)
    assert plan.chosen.peak == min(way.peak for way in plan.ways)
    assert "nothing fits" in str(plan)
    assert "nothing fits" not in str(planned(1 << 40))


def test_what_cannot_be_joined_is_not_joined() -> None:
    plan = planned(1 << 40, can_join=False)
    assert isinstance(plan.engine(), Joined)
    assert [way.name for way in plan.ways] == [
        "forwards in step, in memory",
        "one microbatch at a time, the rest on disk",
    ]
    case = CASES["timm resnet, bottleneck"]
    x, y = case.big_batch()
    ragged = [(x[:4], y[:4]), (x[4:, ..., ::2, ::2], y[4:])]
    forwards = Forwards(case.build(), case.loss, ragged, [0.5, 0.5])
    names = [way.name for way in plan_for(forwards, None, can_join=True).ways]
    assert not any("big batch" in name for name in names)


def test_a_model_without_coupling_goes_one_by_one() -> None:
    entry = ZOO["vit_tiny"]
    microbatches = [entry.batch() for _ in range(2)]
    forwards = Forwards(fresh(entry), entry.loss, microbatches, [0.5, 0.5])
    plan = plan_for(forwards, None, can_join=True)
    assert [way.name for way in plan.ways] == ["microbatch by microbatch: no norm couples"]
    assert isinstance(plan.engine(), Joined)


def test_the_prediction_is_near_what_autograd_saves() -> None:
    """Half of what the big batch is said to take, to all of it: the rest is working memory."""
    case = CASES["timm resnet, bottleneck"]
    batch = case.big_batch()
    forwards = Forwards(case.build(), case.loss, cut(batch, [4, 4]), [0.5, 0.5])
    model, seen = case.build(), {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            seen[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = case.loss(model, batch)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in seen.values())
    del loss
    predicted = plan_for(forwards, None, can_join=True).ways[0].peak
    assert saved / 2 < predicted < 2 * saved


def test_measuring_leaves_nothing_behind() -> None:
    case = CASES["timm mobilenetv3"]
    model = case.build()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    print(plan(model, case.loss, cut(case.big_batch(), [8, 8])))  # noqa: T201
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())


def test_the_choice_goes_to_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    case = CASES["unet"]
    model, microbatches = case.build(), cut(case.big_batch(), [8, 8])
    with caplog.at_level(logging.INFO, "frostline"):
        for _ in range(2):
            accumulate(model, case.loss, microbatches, memory="1GB")
    assert [record.message for record in caplog.records] == [
        str(plan(model, case.loss, microbatches, memory="1GB"))
    ]


def test_it_prints_within_80_columns_and_serialises() -> None:
    found = planned(123_456)
    assert max(map(len, str(found).splitlines())) <= 80
    told = found.to_dict()
    assert told["chosen"] in [way["name"] for way in told["ways"]]
    assert told["memory"] == 123_456


def test_engines_are_made_when_they_are_taken() -> None:
    engine: Engine = planned(1 << 40).engine()
    assert engine == BigBatch()
