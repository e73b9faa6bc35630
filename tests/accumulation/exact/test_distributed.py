"""Under DistributedDataParallel: one backward a window, so gradients are exchanged once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from frostline.accumulation.accumulate import accumulate
from frostline.accumulation.exact.choosing import offloaded
from frostline.accumulation.exact.engines import Joined, Windowed
from frostline.errors import AccumulationError
from frostline.lockstep.storing import HostStore
from tests.accumulation.exact.cases import CASES, cut


@pytest.fixture(autouse=True)
def _one_rank(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("offload", [None, "disk", "auto"])
def test_a_window_is_the_big_batch(offload: Any) -> None:
    case = CASES["shuffled halves"]
    ours, theirs = (DistributedDataParallel(case.build()) for _ in range(2))
    exchanged: list[int] = []

    def counting(state, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations
        exchanged.append(bucket.index())
        future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future

    ours.register_comm_hook(None, counting)
    batch = case.big_batch()
    accumulate(ours, case.loss, cut(batch, [1, 3, 4]), offload=offload)
    case.loss(theirs, batch).backward()
    assert sorted(exchanged) == sorted(set(exchanged))
    for mine, big in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, big.grad, rtol=1e-9, atol=1e-13)
    for mine, big in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, big, rtol=1e-12, atol=1e-14)


def test_one_backward_where_ranks_exchange_in_it() -> None:
    model = CASES["shuffled halves"].build()
    assert isinstance(offloaded(HostStore(), model), Windowed)
    assert isinstance(offloaded(HostStore(), DistributedDataParallel(model)), Joined)


def test_sharded_models_are_refused() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    case = CASES["shuffled halves"]
    model = fully_shard(case.build(), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(AccumulationError, match="FSDPModule"):
        accumulate(model, case.loss, cut(case.big_batch(), [4, 4]))
