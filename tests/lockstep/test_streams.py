"""Each run draws by itself, and the first as if it were alone."""

from __future__ import annotations

import torch

from frostline.lockstep.streams import streams


def test_the_first_is_the_one_of_before() -> None:
    start = torch.get_rng_state(), []
    assert streams(3, start)[0] is start


def test_all_differ_and_come_again() -> None:
    start = torch.get_rng_state(), []
    drawn = []
    for _ in range(2):
        for state, _ in streams(4, start):
            torch.set_rng_state(state)
            drawn.append(tuple(torch.rand(4).tolist()))
    assert len(set(drawn[:4])) == 4
    assert drawn[:4] == drawn[4:]


def test_another_start_gives_others() -> None:
    torch.manual_seed(1)
    one = streams(2, (torch.get_rng_state(), []))[1][0]
    torch.manual_seed(2)
    assert not torch.equal(one, streams(2, (torch.get_rng_state(), []))[1][0])


def test_deriving_draws_nothing() -> None:
    before = torch.get_rng_state()
    streams(5, (before, []))
    assert torch.equal(torch.get_rng_state(), before)
