"""Freed memory back to the system, which the allocator of the C library keeps in holes."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

_AFTER = 32 << 20  # bytes; a trim takes about 1 ms


class Trimmer:
    """Asks the C library (glibc) to give back what is free, once enough has been freed.

    Large tensors of waiting microbatches leave holes between the small objects of the graph, so
    that without this the process would grow with the window although nothing is in use.
    """

    def __init__(self) -> None:
        self._freed = 0

    def freed(self, nbytes: int) -> None:
        """So many bytes were freed, or soon will be."""
        self._freed += nbytes
        if self._freed > _AFTER:
            self._freed = 0
            trim = _malloc_trim()
            if trim is not None:
                trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return None
