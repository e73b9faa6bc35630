"""Who else can write to a range of this process's memory: another process, or a file's editor."""

from __future__ import annotations

import re
from bisect import bisect_right
from pathlib import Path

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ...(.) \S+ \S+ (\d+) *(.*)")


class Private:
    """The mappings of this process at one moment (Linux; elsewhere nothing is known)."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._mappings: list[tuple[int, str | None]] = []
        maps = Path("/proc/self/maps")
        for line in maps.read_text(errors="replace").splitlines() if maps.exists() else ():
            if match := _LINE.match(line):
                start, end, shared, inode, path = match.groups()
                self._starts.append(int(start, 16))
                self._mappings.append((int(end, 16), _reason(shared, inode, path)))

    def why_not(self, start: int, end: int) -> str | None:
        """Why writes from elsewhere can reach this range; None if they cannot."""
        number = max(0, bisect_right(self._starts, start) - 1)
        while number < len(self._starts) and self._starts[number] < end:
            high, reason = self._mappings[number]
            if high > start and reason:
                return reason
            number += 1
        return None


def _reason(shared: str, inode: str, path: str) -> str | None:
    if shared == "s":
        return "shared memory, which other processes write unseen"
    return (
        f"mapped from a file ({Path(path).name}), edits of which are unseen" if int(inode) else None
    )
