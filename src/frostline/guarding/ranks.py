"""Whether all ranks hold the same frozen bytes, asked without any collective.

Ranks leave what they have in the store of the default process group, and read what others left.
A rank that never comes costs a wait and a note, where a collective would hang.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch.distributed as dist

from frostline._results import plural

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_LISTED = 4  # ranks or names that a text lists; of more it gives the number
_FAREWELL = 5.0  # seconds that the rank with the store waits for others to finish reading


@dataclass(frozen=True)
class RankReport:
    """What ranks said about their frozen bytes.

    Attributes:
        ranks: how many ranks there are.
        missing: ranks that did not report in time.
        differing: ranks with other bytes than most, each with the names of the tensors. Where
            there is no majority, all but the group with the highest rank.
        against: for each differing rank the ranks that it differs from.
        notes: what is worth knowing and no alarm.
    """

    ranks: int
    missing: tuple[int, ...] = ()
    differing: list[tuple[int, list[str]]] = field(default_factory=list)
    against: Mapping[int, Sequence[int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def text_of(self, rank: int) -> str:
        """A sentence for a rank that differs.

        Example:
            >>> RankReport(3, differing=[(1, ["w"])], against={1: [0, 2]}).text_of(1)
            'rank 1 has other bytes than ranks 0 and 2'
        """
        return f"rank {rank} has other bytes than {_list(self.against[rank])}"


def are_several() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def shared_key(label: str) -> int:
    """A key that is the same on all ranks: the first one to ask draws it."""
    drawn = str(secrets.randbits(63))
    if not are_several():
        return int(drawn)
    try:
        return int(_store(label).compare_set("key", "", drawn))
    except (RuntimeError, ValueError):
        # The rank with the store has gone. No comparison will take place, and that says why.
        return int(drawn)


def compare(table: Mapping[str, bytes], label: str, timeout: float = 30.0) -> RankReport:
    """Compare digests of replicated tensors with those of the other ranks.

    The first comparison of a rank meets the first ones of the others, and so on.

    Args:
        table: full name and 16-byte digest, made under :func:`shared_key`.
        label: what is compared; ranks that give the same label meet.
        timeout: seconds to wait for the others.
    """
    if not are_several():
        return RankReport(1)
    try:
        return _Meeting(label, timeout).hold(table)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return RankReport(
            dist.get_world_size(),
            notes=[f"ranks were not compared: the store of the process group is gone ({reason})"],
        )


def _store(label: str) -> Store:
    # A torch that was built without distributed has no such class.
    from torch.distributed.distributed_c10d import PrefixStore

    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("there is no default process group")
    return PrefixStore(f"frostline/{label}", group.get_group_store())


class _Meeting:
    """One comparison, under its number."""

    def __init__(self, label: str, timeout: float) -> None:
        self._store = _store(label)
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._number = self._store.add(f"number/{self._rank}", 1)

    def hold(self, table: Mapping[str, bytes]) -> RankReport:
        self._post(table)
        here = self._wait()
        said = self._read("root", here)
        tables: dict[int, dict[str, str]] = {}
        if len(set(said.values())) > 1:
            said = self._read("table", here)
            tables = {rank: json.loads(text) for rank, text in said.items()}
        self._leave(len(here))
        missing = tuple(rank for rank in range(self._ranks) if rank not in said)
        notes = [_late(missing, self._timeout)] if missing else []
        return _judge(self._ranks, missing, tables, notes)

    def _key(self, what: str, rank: int, number: int | None = None) -> str:
        return f"{self._number if number is None else number}/{what}/{rank}"

    def _post(self, table: Mapping[str, bytes]) -> None:
        content = json.dumps({name: table[name].hex() for name in sorted(table)})
        # The table first: who sees a root can read the table at once.
        self._store.set(self._key("table", self._rank), content)
        root = hashlib.blake2b(content.encode(), digest_size=32).hexdigest()
        self._store.set(self._key("root", self._rank), root)
        # Whoever is in this meeting has left the one before the last.
        for what in ("root", "table") if self._number > 2 else ():
            self._store.delete_key(self._key(what, self._rank, self._number - 2))

    def _wait(self) -> list[int]:
        """The ranks that came, all of them or those that made it in time."""
        awaited, pause = set(range(self._ranks)), 0.001
        while True:
            awaited -= {rank for rank in awaited if self._store.check([self._key("root", rank)])}
            if not awaited or time.monotonic() > self._deadline:
                return [rank for rank in range(self._ranks) if rank not in awaited]
            time.sleep(pause)
            pause = min(2 * pause, 0.05)

    def _read(self, what: str, ranks: Sequence[int]) -> dict[int, bytes]:
        """What these ranks left; one that is two meetings further has cleared it away."""
        keys = {rank: self._key(what, rank) for rank in ranks}
        # Asked first, because to get what is not there is to wait for it.
        return {
            rank: self._store.get(key) for rank, key in keys.items() if self._store.check([key])
        }

    def _leave(self, expected: int) -> None:
        """Rank 0 often is the store, and must not go while others still read."""
        key = f"{self._number}/read"
        self._store.add(key, 1)
        end = time.monotonic() + _FAREWELL
        while self._rank == 0 and self._store.add(key, 0) < expected and time.monotonic() < end:
            time.sleep(0.001)


def _judge(
    ranks: int, missing: tuple[int, ...], tables: Mapping[int, Mapping[str, str]], notes: list[str]
) -> RankReport:
    shared = set.intersection(*(set(table) for table in tables.values())) if tables else set()
    others = {rank: sorted(set(table) - shared) for rank, table in tables.items()}
    if any(others.values()):
        notes = [*notes, _different_tensors(others)]
    differing: dict[int, list[str]] = {}
    against: dict[int, set[int]] = {}
    for name in sorted(shared):
        right = _most({rank: table[name] for rank, table in tables.items()})
        for rank in sorted(set(tables) - set(right)):
            differing.setdefault(rank, []).append(name)
            against.setdefault(rank, set()).update(right)
    return RankReport(
        ranks,
        missing,
        sorted(differing.items()),
        {rank: sorted(right) for rank, right in against.items()},
        notes,
    )


def _most(digests: Mapping[int, str]) -> list[int]:
    """The largest group of ranks that agree; of equally large ones that with the highest ranks."""
    sizes = Counter(digests.values())
    groups = [[r for r, digest in digests.items() if digest == value] for value in sizes]
    return max(groups, key=lambda group: (len(group), min(group)))


def _late(missing: Sequence[int], timeout: float) -> str:
    did = "were not compared" if len(missing) > 1 else "was not compared"
    return f"{_list(missing)} did not report within {timeout:g} s and {did}"


def _different_tensors(others: Mapping[int, list[str]]) -> str:
    said = [
        f"{', '.join(names[:_LISTED])}{_more(len(names))} on rank {rank}"
        for rank, names in others.items()
        if names
    ]
    return "ranks guard different tensors, and only those on all ranks were compared: " + "; ".join(
        said
    )


def _more(count: int) -> str:
    return f" and {plural(count - _LISTED, 'more tensor')}" if count > _LISTED else ""


def _list(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    if len(ranks) > _LISTED:
        return f"{len(ranks)} other ranks"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
