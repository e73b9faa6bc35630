"""Arithmetic of address ranges: sorted lists of [start, end) that do not touch each other."""

from __future__ import annotations

from collections.abc import Iterable

Range = tuple[int, int]


def joined(ranges: Iterable[Range], gap: int = 0) -> list[Range]:
    """Sorted, the empty ones left out, and those that overlap or are at most `gap` apart as one.

    Example:
        >>> joined([(8, 9), (0, 2), (2, 4), (5, 5)])
        [(0, 4), (8, 9)]
    """
    found: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if found and start - found[-1][1] <= gap:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def common(a: list[Range], b: list[Range]) -> list[Range]:
    """What is in both of two sorted lists.

    Example:
        >>> common([(0, 4), (8, 9)], [(3, 9)])
        [(3, 4), (8, 9)]
    """
    found: list[Range] = []
    i = j = 0
    while i < len(a) and j < len(b):
        start, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if start < end:
            found.append((start, end))
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return found


def without(a: list[Range], b: list[Range]) -> list[Range]:
    """What of a sorted list is not in the other.

    Example:
        >>> without([(0, 4), (8, 9)], [(3, 9)])
        [(0, 3)]
    """
    found: list[Range] = []
    for start, end in a:
        for low, high in common([(start, end)], b):
            if start < low:
                found.append((start, low))
            start = high
        if start < end:
            found.append((start, end))
    return found
