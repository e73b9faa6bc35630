"""Random draws of microbatches, and parts that draw or run a second time or compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frostline.accumulation.accumulate import accumulate
from tests.accumulation.exact.case_models import Checkpointed, Dropping, Shuffle
from tests.accumulation.exact.cases import IMAGES, Batch, Case, cut
from tests.accumulation.exact.truth import Distance, assert_is_big_batch, distance, run

offloads = pytest.mark.parametrize("offload", [None, "disk"])
DROPPING = Case("dropout", Dropping, IMAGES)


def seeded(accumulated: Callable[..., Tensor], seed: int = 5) -> Callable[..., Tensor]:
    def run_seeded(*given: Any) -> Tensor:
        torch.manual_seed(seed)
        return accumulated(*given)

    return run_seeded


def whole(model: nn.Module, loss: Any, microbatches: list[Batch]) -> Tensor:
    (batch,) = microbatches
    total = loss(model, batch)
    total.backward()
    return total


@offloads
def test_one_microbatch_draws_what_the_big_batch_draws(offload: str | None) -> None:
    exact = seeded(partial(accumulate, offload=offload))
    found, true = run(DROPPING, exact, [8]), run(DROPPING, seeded(whole), [8])
    apart = distance(found, true)
    assert apart.loss < 1e-14
    assert apart.gradients < 1e-12
    assert distance(found, run(DROPPING, seeded(whole, 6), [8])).gradients > 1e-3


@offloads
def test_draws_go_on_after_the_window(offload: str | None) -> None:
    after = []
    for way in (seeded(partial(accumulate, offload=offload)), seeded(whole)):
        run(DROPPING, way, [8])
        after.append(torch.rand(3))
    assert torch.equal(*after)


@offloads
def test_the_same_seed_gives_the_same_window(offload: str | None) -> None:
    exact = seeded(partial(accumulate, offload=offload))
    first, second = (run(DROPPING, exact, [2, 3, 3]) for _ in range(2))
    assert distance(first, second) == Distance(0.0, 0.0, 0.0, 0.0)
    other = run(DROPPING, seeded(partial(accumulate, offload=offload), 6), [2, 3, 3])
    assert distance(first, other).gradients > 1e-3


@offloads
def test_microbatches_draw_masks_of_their_own(offload: str | None) -> None:
    model, masks = DROPPING.build(), []
    microbatches = cut(DROPPING.big_batch(), [2, 2, 2, 2])
    accumulate(model, DROPPING.loss, microbatches)  # the probes draw masks, too
    model.dropout.register_forward_hook(lambda m, i, o: masks.append(o == 0))
    accumulate(model, DROPPING.loss, [microbatches[0]] * 4, offload=offload)
    assert len(masks) == 4
    for k in range(1, 4):
        assert not torch.equal(masks[0], masks[k])
    state = torch.get_rng_state()
    accumulate(model, DROPPING.loss, [microbatches[0]] * 4, offload=offload)
    assert not torch.equal(masks[0], masks[4])  # the next window goes on
    assert not torch.equal(state, torch.get_rng_state())


class _CheckpointedDropout(Checkpointed):
    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block.insert(0, nn.Dropout(0.3))


def _unrolled(model: Checkpointed) -> None:
    model.checkpointing = False


@offloads
def test_a_checkpoint_draws_its_masks_again(offload: str | None) -> None:
    exact = seeded(partial(accumulate, offload=offload))
    rolled = Case("checkpointed dropout", _CheckpointedDropout, IMAGES)
    plain = replace(rolled, prepare=_unrolled)
    apart = distance(run(rolled, exact, [2, 3, 3]), run(plain, exact, [2, 3, 3]))
    assert apart.gradients < 1e-12
    assert apart.statistics < 1e-13


class _Compiled(Shuffle):
    """Its blocks run compiled; the backend leaves the numbers as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled = True

    def middle(self, x: Tensor) -> Tensor:
        if not self.compiled:
            return super().middle(x)
        return torch.compile(super().middle, backend="eager")(x)


def _eager(model: _Compiled) -> None:
    model.compiled = False


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@offloads
def test_a_compiled_part(offload: str | None) -> None:
    case = Case("compiled", _Compiled, IMAGES, unroll=_eager)
    assert_is_big_batch(case, run(case, partial(accumulate, offload=offload), [1, 3, 4]))
