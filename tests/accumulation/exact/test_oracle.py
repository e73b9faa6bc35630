"""Lockstep by threads against the truth, and the library against it.

Threads share nothing with greenlets: whatever torch keeps for a thread cannot leak there.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from frostline.accumulation.accumulate import accumulate
from tests.accumulation.exact.case_models import Branching
from tests.accumulation.exact.cases import CASES, HEAVY, SWEPT, Case, each_of, even, size_of
from tests.accumulation.exact.oracle import in_lockstep
from tests.accumulation.exact.truth import assert_is_big_batch, distance, run, truth
from tests.zoo import classify, live

# It leaves recomputation, and what iterates or updates by itself, to the library.
UNKNOWN = ("checkpointed", "spectral", "instance")
KNOWN = {name: case for name, case in CASES.items() if not any(word in name for word in UNKNOWN)}


@each_of(KNOWN.values(), slow=HEAVY)
def test_the_oracle_is_the_big_batch(case: Case) -> None:
    assert_is_big_batch(case, run(case, in_lockstep, even(size_of(case.batch()), 4)))


@each_of(SWEPT.values())
def test_the_oracle_on_unequal_microbatches(case: Case) -> None:
    assert_is_big_batch(case, run(case, in_lockstep, [1, 7, 3, 5]))


def test_the_oracle_tells_microbatches_that_differ() -> None:
    model = live(Branching()).train()
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        images[2:] = 0.0
        model.stem[0].bias.zero_()
        model.stem[1].bias.zero_()
    labels = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(AssertionError, match="different calls"):
        in_lockstep(model, classify, [(images[:2], labels[:2]), (images[2:], labels[2:])])


def test_a_failing_microbatch_ends_the_oracle() -> None:
    def fails(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        raise KeyError("no such loss")

    case = CASES["unet"]
    with pytest.raises(KeyError, match="no such loss"):
        run(case, in_lockstep_failing(fails), [4, 4, 8])


def in_lockstep_failing(fails):
    return lambda model, loss, microbatches: in_lockstep(model, fails, microbatches)


@pytest.mark.parametrize("offload", [None, "disk"])
@each_of(SWEPT.values())
def test_the_library_agrees_with_the_oracle(case: Case, offload: str | None) -> None:
    sizes = [2, 6, 3, 5]
    ours = run(case, partial(accumulate, offload=offload), sizes)
    apart, noise = distance(ours, run(case, in_lockstep, sizes)), truth(case)[1]
    assert apart.gradients <= 4 * noise.gradients
    assert apart.statistics <= 4 * noise.statistics
    assert apart.loss <= 4 * noise.loss
    assert apart.buffers == 0
