"""One rank of three that compare what they have: every scenario in one life of the group."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from frostline.checksums import checksum
from frostline.guarding import ranks

Table = dict[str, bytes]


def table(label: str, **changed: float) -> Table:
    """Digests of real tensors, the same on every rank but for those that are named."""
    key = ranks.shared_key(label)
    tensors = {"body.weight": torch.ones(4, 4), "body.bias": torch.zeros(4), "mean": torch.ones(3)}
    for name, value in changed.items():
        tensors[name.replace("__", ".")].view(-1)[0] = value
    return {n: bytes.fromhex(checksum(t, key, n).value) for n, t in tensors.items()}


def equal(rank: int) -> list[ranks.RankReport]:
    return [ranks.compare(table("equal"), "equal")]


def one_differs(rank: int) -> list[ranks.RankReport]:
    changed = {"body__bias": 1e-7} if rank == 1 else {}
    return [ranks.compare(table("one differs", **changed), "one differs")]


def each_differs(rank: int) -> list[ranks.RankReport]:
    return [ranks.compare(table("each differs", mean=rank + 2.0), "each differs")]


def names_differ(rank: int) -> list[ranks.RankReport]:
    mine = table("names differ", **({"mean": 5.0} if rank == 0 else {}))
    if rank == 2:
        del mine["body.weight"]
    return [ranks.compare(mine, "names differ")]


def one_stays_away(rank: int) -> list[ranks.RankReport]:
    mine = table("one stays away")
    return [] if rank == 2 else [ranks.compare(mine, "one stays away", timeout=0.3)]


def alone(rank: int) -> list[ranks.RankReport]:
    return [ranks.compare(table("alone"), "alone", timeout=0.2)] if rank == 0 else []


def four_in_a_row(rank: int) -> list[ranks.RankReport]:
    found = []
    for turn in range(4):
        changed = {"mean": 9.0} if (turn, rank) in {(1, 2), (3, 0)} else {}
        found.append(ranks.compare(table("in a row", **changed), "in a row"))
    return found


def one_after_the_other(rank: int) -> list[ranks.RankReport]:
    time.sleep((2 - rank) * 0.15)
    changed = {"mean": 3.0} if rank == 0 else {}
    return [ranks.compare(table("order", **changed), "order")]


SCENARIOS = {
    "equal": equal,
    "one differs": one_differs,
    "each differs": each_differs,
    "names differ": names_differ,
    "one stays away": one_stays_away,
    "alone": alone,
    "four in a row": four_in_a_row,
    "one after the other": one_after_the_other,
}


def slowly(read: Callable[..., Any]) -> Callable[..., Any]:
    def slow(*args: Any) -> Any:
        time.sleep(0.4)
        return read(*args)

    return slow


def main(rank: int, world_size: int, address: str, out: str) -> None:
    dist.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=world_size, timeout=timedelta(seconds=60)
    )
    found: dict[str, Any] = {}
    for name, run in SCENARIOS.items():
        state = torch.get_rng_state()
        found[name] = [
            {**asdict(report), "texts": [report.text_of(r) for r, _ in report.differing]}
            for report in run(rank)
        ]
        assert torch.equal(torch.get_rng_state(), state)
    dist.barrier()
    if rank == 2:
        ranks._Meeting._read = slowly(ranks._Meeting._read)
    found["last"] = [asdict(ranks.compare(table("last", mean=float(rank == 1)), "last"))]
    Path(out).write_text(json.dumps(found))
    # Rank 0 holds the store and is gone at once: the others must have read all that they need.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
