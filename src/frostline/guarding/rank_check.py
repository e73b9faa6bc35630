"""The same frozen bytes on every rank: what is replicated is compared, shards are not."""

from __future__ import annotations

from frostline._results import Change
from frostline.checksums import checksum
from frostline.guarding import local, ranks
from frostline.guarding.engine import Engine


def compare(engine: Engine, label: str) -> tuple[list[Change], list[str]]:
    """Changes that only a look at other ranks shows, and notes.

    Returns at once without torch.distributed. Ranks that do not come in time are a note.
    """
    if not ranks.are_several():
        return [], []
    key = ranks.shared_key(label)
    table = {
        watched.name: bytes.fromhex(checksum(watched.tensor, key, watched.name).value)
        for watched in engine.target.tensors
        if not local.is_shard(watched.tensor)
    }
    found = ranks.compare(table, label)
    changes = [
        Change(
            name,
            "value",
            tier="ranks",
            cause=found.text_of(rank),
            mend="Send the right ones to all: torch.distributed.broadcast(tensor, src=0)",
        )
        for rank, names in found.differing
        for name in names
    ]
    return changes, found.notes
