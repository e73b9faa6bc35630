"""Two real ranks over gloo: what is frozen before FSDP2 or DDP wraps it stays, byte for byte."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import frostline as fl
from frostline.errors import FreezeError

ROOT = Path(__file__).parents[2]


def test_frozen_bytes_hold_over_two_ranks(tmp_path: Path) -> None:
    store = tmp_path / "store"
    # Not torch.multiprocessing: it imports the parent's pytest session again.
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.freezing.distributed_worker", str(rank), str(store)],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=100)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    done = [Path(f"{store}.{rank}").read_text().splitlines() for rank in range(2)]
    cases = ["DDP, free", "DDP, freeze first"]
    cases += ["FSDP2, free", "FSDP2, freeze first", "FSDP2, wrap first"]
    assert done == [cases, cases]


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("given", ["the wrapper", "a model that contains it"])
def test_toggling_flags_under_ddp_is_refused_by_name(given: str, one_rank: None) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    wrapped = DistributedDataParallel(net)
    model = wrapped if given == "the wrapper" else nn.Sequential(wrapped)
    with pytest.raises(FreezeError, match=r"DistributedDataParallel.*Freeze first, wrap after"):
        fl.freeze(model)
    assert all(p.requires_grad for p in net.parameters())
    assert not any(key.startswith("_frostline") for m in model.modules() for key in vars(m))


@pytest.mark.parametrize("flags", ["already off", "left alone"])
def test_freezing_under_ddp_is_allowed_where_no_flag_is_toggled(flags: str, one_rank: None) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    if flags == "already off":
        net[0].requires_grad_(False)
    wrapped = DistributedDataParallel(net)
    if flags == "already off":
        fl.freeze(wrapped, ["0", "1"])
    else:
        fl.freeze(wrapped, ["0", "1"], params=False)
    wrapped.train()
    assert not net[1].training
    assert net[2].training
