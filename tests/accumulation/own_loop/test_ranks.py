"""Two real ranks: one exchange a window, weights over both, and the loss of all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from tests.accumulation.own_loop.loops import (
    Run,
    assert_close,
    batch_norm_net,
    by_big_batches,
    layer_norm_net,
)
from tests.accumulation.own_loop.ranks_worker import COUNT, SCENARIOS, share

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the two left, by scenario."""
    folder = tmp_path_factory.mktemp("ranks")
    module = "tests.accumulation.own_loop.ranks_worker"
    address = f"file://{folder / 'store'}"
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", module, address, str(rank), str(folder)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        errors = [run.communicate(timeout=300)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def both(count: int, until: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """The windows of both ranks, one after the other: COUNT of a rank, COUNT of the other."""
    shares = [share(rank)[:until] for rank in (0, 1)]
    return [
        (torch.cat([x for x, _ in window]), torch.cat([y for _, y in window]))
        for start in range(0, len(shares[0]), count)
        for window in [[b for one in shares for b in one[start : start + count]]]
    ]


def truth(batches: list[tuple[Tensor, Tensor]]) -> tuple[Run, nn.Module]:
    model = layer_norm_net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    return by_big_batches(model, optimizer, batches, 1, max_grad_norm=0.3), model


@pytest.mark.parametrize("scenario", ["replicated", "bucket_views", "sharded", "left_out"])
def test_steps_are_those_of_the_batch_of_all_ranks(
    scenario: str, ranks: list[dict[str, Any]]
) -> None:
    batches = both(3, until=4) if scenario == "left_out" else both(COUNT)
    true, _ = truth(batches)
    for rank in ranks:
        found = rank[scenario]
        assert found["steps"] == len(batches)
        assert found["loss"] == pytest.approx(true.losses[-1], rel=1e-12)
        assert_close(found["tensors"], true.parameters, 1e-12)


def test_a_part_of_a_model_may_exchange(ranks: list[dict[str, Any]]) -> None:
    model = layer_norm_net()
    for parameter in model[:2].parameters():
        parameter.requires_grad_(False)
    true = by_big_batches(model, SGD(model[2:].parameters(), lr=0.1), both(COUNT), 1)
    for rank in ranks:
        assert_close(rank["part_of_the_model"]["tensors"], true.parameters, 1e-12)


def test_gradients_are_exchanged_once_a_window(ranks: list[dict[str, Any]]) -> None:
    assert [rank["replicated"]["exchanges"] for rank in ranks] == [3, 3]


def test_statistics_are_those_of_the_ranks_own_windows(ranks: list[dict[str, Any]]) -> None:
    """As under DDP without accumulation: each rank averages over what it has seen itself."""
    for number, rank in enumerate(ranks):
        model = batch_norm_net()
        model(torch.cat([x.repeat(2, 1) for x, _ in share(number)[:COUNT]]))
        found = rank["with_norms"]["tensors"][-3:]
        for here, there in zip(found, model.buffers(), strict=True):
            assert float((here - there).abs().max()) < 1e-13


def test_a_loss_that_is_no_number_is_an_error_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    there, here = (rank["infinite_on_one"]["error"] for rank in ranks)
    assert "a microbatch on another rank" in there
    assert "microbatch 1 (from 0)" in here


def test_what_fsdp2_cannot_do_is_refused(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        error = rank["sharded_unannounced"]["error"]
        assert "cannot be stepped before its last microbatch is announced" in error
        assert "cannot be saved with its gradients" in error


def test_every_scenario_ran(ranks: list[dict[str, Any]]) -> None:
    assert all(rank.keys() == SCENARIOS.keys() for rank in ranks)
