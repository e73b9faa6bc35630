"""Samples from fresh processes: time, and peak memory over the start.

The two are taken in different processes. For memory malloc is told to give back what is freed:
else it keeps a part of it, by chance, and what is resident is not what is in use. That costs page
faults, hence time.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

KINDS = ("memory", "time")
QUIET = 0.3  # cores that others may use

Sample = dict[str, Any]


# --- in the child ------------------------------------------------------------------------------


def resident(name: str) -> int:
    """`VmRSS`, what is resident now, or `VmHWM`, the most since :func:`forget_peak`; bytes."""
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"{name}:\s+(\d+) kB", status)
    if found is None:
        raise RuntimeError("the kernel does not tell what is resident; this needs Linux")
    return int(found.group(1)) * 1024


def forget_peak() -> int:
    """Give free heap back and let the kernel forget the peak; what is resident then, in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def measured(action: Callable[[], Any]) -> tuple[Any, Sample]:
    """What ``action`` gives, its seconds, and the bytes of its peak over the start."""
    start = forget_peak()
    began, cpu = time.perf_counter(), time.process_time()
    result = action()
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    peak = resident("VmHWM") - start
    return result, {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak": peak, "start": start}


# --- in the parent -----------------------------------------------------------------------------


def taken(child: Path, wanted: Sample) -> Sample:
    """What the child prints for the values of ``wanted``; ``error`` where it failed."""
    malloc = {"MALLOC_MMAP_THRESHOLD_": "65536"} if wanted["kind"] == "memory" else {}
    busy = others()
    done = subprocess.run(
        [sys.executable, str(child), json.dumps(wanted)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | malloc,
        capture_output=True,
        text=True,
    )
    found = json.loads(done.stdout) if done.returncode == 0 else {"error": _last(done.stderr)}
    return {**wanted, "others": busy, "load": os.getloadavg()[0], **found}


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def others(seconds: float = 0.5) -> float:
    """How many cores are at work right now, in the mean."""
    before = _ticks()
    time.sleep(seconds)
    idle, every = (b - a for a, b in zip(before, _ticks(), strict=True))
    return (1 - idle / every) * (os.cpu_count() or 1)


def _ticks() -> tuple[int, int]:
    ticks = [int(n) for n in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return ticks[3] + ticks[4], sum(ticks)


class Kept:
    """Samples in a JSON file, added to as they come.

    Args:
        path: of the file.
        keys: which tell one sample from another.
        head: what else stands in the file.
    """

    def __init__(self, path: Path, keys: tuple[str, ...], head: Sample) -> None:
        self._path, self._keys, self._head = path, keys, head

    def read(self) -> list[Sample]:
        return json.loads(self._path.read_text())["samples"] if self._path.exists() else []

    def has(self, wanted: Sample) -> bool:
        return any(self._is_of(sample, wanted) for sample in self.read())

    def add(self, sample: Sample) -> None:
        """In place of one that is of the same; the file is whole at any time."""
        samples = [other for other in self.read() if not self._is_of(other, sample)]
        lines = ",\n".join(json.dumps(one) for one in [*samples, sample])
        fresh = self._path.with_suffix(".part")
        fresh.write_text(f'{json.dumps(self._head)[:-1]}, "samples": [\n{lines}\n]}}\n')
        fresh.replace(self._path)

    def _is_of(self, sample: Sample, other: Sample) -> bool:
        return all(sample[key] == other[key] for key in self._keys)


def refuse_if_busy(allowed: bool) -> None:
    if not allowed and others() > QUIET:
        sys.exit("others use this machine; wait, or add --busy, which is noted in the samples")
