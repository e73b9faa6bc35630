"""Float32 and autocast: as close to the truth in float64 as the big batch itself, times three."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.accumulation.accumulate import accumulate
from tests.accumulation.exact.cases import (
    CASES,
    HEAVY,
    SWEPT,
    Batch,
    Case,
    cut,
    each_of,
    even,
    size_of,
)
from tests.accumulation.exact.truth import (
    Distance,
    assert_is_big_batch,
    big_batch,
    distance,
    outcome,
    own_error,
    plainly,
    run,
    truth,
)

offloads = pytest.mark.parametrize("offload", [None, "disk"])
NAMES = ("timm densenet, checkpointed", "spectral norm, new", "teacher after")
single = each_of([*SWEPT.values(), *(CASES[name] for name in NAMES)], slow=HEAVY[1:])
swept = each_of(SWEPT.values(), slow=HEAVY[1:])


def within_three(error: Distance, own: Distance) -> bool:
    return all(a <= 3 * b for a, b in zip(error.kinds, own.kinds, strict=True))


def told(case: Case, error: Distance, own: Distance) -> str:
    return f"{case}\n  error: {error}\n  big batch's own: {own}"


@offloads
@single
def test_float32_is_as_good_as_the_big_batch(case: Case, offload: str | None) -> None:
    sizes = even(size_of(case.batch()), 4)
    found = run(case, partial(accumulate, offload=offload), sizes, torch.float32)
    error, own = distance(found, truth(case)[0]), own_error(case, torch.float32, case)
    print(told(case, error, own))  # noqa: T201
    assert within_three(error, own), told(case, error, own)


def under_autocast(case: Case) -> Case:
    def loss(model: nn.Module, batch: Batch) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return case.loss(model, batch)

    return replace(case, loss=loss)


_AUTOCAST = {case: under_autocast(case) for case in SWEPT.values()}


@offloads
@swept
def test_autocast_is_as_good_as_the_big_batch_under_it(case: Case, offload: str | None) -> None:
    mixed = _AUTOCAST[case]
    found = run(mixed, partial(accumulate, offload=offload), even(16, 4), torch.float32)
    error, own = distance(found, truth(case)[0]), own_error(mixed, torch.float32, case)
    print(told(case, error, own))  # noqa: T201
    assert own.gradients > 1e-3  # bfloat16 was used at all
    assert within_three(error, own), told(case, error, own)
    plain = distance(run(mixed, plainly, even(16, 4), torch.float32), truth(case)[0])
    assert plain.statistics > 3 * own.statistics


@offloads
def test_statistics_under_autocast_are_as_accurate_as_torchs(offload: str | None) -> None:
    case = _AUTOCAST[SWEPT["unet"]]
    found = run(case, partial(accumulate, offload=offload), even(16, 4), torch.float32)
    # The first norm sees the same bfloat16 inputs in both.
    name = "down.0.1.running_var"
    (ours, scale), (theirs, _) = (
        outcome.statistics[name] for outcome in (found, big_batch(case, torch.float32))
    )
    assert ((ours - theirs) / scale).abs().max() < 1e-6


@offloads
def test_autocast_round_the_window(offload: str | None) -> None:
    """Entered outside of the loss, as trainers do."""
    case = SWEPT["unet"]

    def outside(model: nn.Module, loss: Any, microbatches: list[Batch]) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return accumulate(model, loss, microbatches, offload=offload)

    error = distance(run(case, outside, even(16, 4), torch.float32), truth(case)[0])
    own = own_error(_AUTOCAST[case], torch.float32, case)
    assert within_three(error, own), told(case, error, own)


@offloads
def test_a_scaler_scales_the_window(offload: str | None) -> None:
    case = CASES["unet"]
    model, microbatches = case.build(), cut(case.big_batch(), even(16, 4))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    calls = []

    def backward(loss: Tensor) -> None:
        calls.append(loss.detach())
        scaler.scale(loss).backward()

    loss = accumulate(model, case.loss, microbatches, offload=offload, backward=backward)
    assert model.out.weight.grad.norm() > 100 * truth(case)[0].gradients["out.weight"].norm()
    scaler.unscale_(torch.optim.SGD(model.parameters(), lr=0.1))
    assert_is_big_batch(case, outcome(model, loss, microbatches))
    if offload is None:
        assert len(calls) == 1
        assert torch.equal(calls[0], loss)
