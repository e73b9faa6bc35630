"""Which way of running an exact window fits into memory, the fastest first."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frostline._batches import joined, samples, tensors_in
from frostline._results import Result
from frostline.accumulation.exact.engines import BigBatch, Engine, Joined, Windowed
from frostline.accumulation.exact.footprint import Footprint, footprint
from frostline.accumulation.exact.forwards import Forwards
from frostline.errors import BatchError
from frostline.lockstep.storing import DiskStore, HostStore, Store

_SHARE = 0.7  # of what is free: other programs need some, and predictions are not exact
_GRAPH = 1 << 20  # bytes that the graph of a waiting microbatch takes, about

_log = logging.getLogger("frostline")
_measured: weakref.WeakKeyDictionary[nn.Module, dict[object, Footprint]] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True)
class Way:
    """One way of running the window.

    Attributes:
        name: in words.
        peak: bytes that it takes at most beside the model and its gradients, predicted.
        fits: whether these are there.
    """

    name: str
    peak: int
    fits: bool


@dataclass(frozen=True)
class Plan(Result):
    """The ways to run a window, the fastest first, and the one that is taken.

    Attributes:
        ways: all that can be taken here.
        chosen: the first that fits, or the smallest.
        memory: bytes that may be used.
        engine: makes the engine of the chosen way.
    """

    ways: tuple[Way, ...]
    chosen: Way
    memory: int
    engine: Callable[[], Engine]

    def __str__(self) -> str:
        lines = [f"exact window in {_size(self.memory)}, the fastest way that fits:"]
        for way in self.ways:
            mark = "->" if way is self.chosen else "  "
            verdict = "fits" if way.fits else "does not fit"
            lines.append(f"{mark} {way.name:<44} {_size(way.peak):>9}  {verdict}")
        if not self.chosen.fits:
            lines.append("nothing fits, so the smallest is taken")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "version": 1,
            "memory": self.memory,
            "ways": [asdict(way) for way in self.ways],
            "chosen": self.chosen.name,
        }


def plan_for(forwards: Forwards, memory: int | None, *, can_join: bool) -> Plan:
    """Predict what each way takes, from one measured forward, and choose.

    Args:
        forwards: of the window.
        memory: bytes that may be used; None for 70 % of what is free.
        can_join: the loss of the microbatches joined is known to be the window's.
    """
    found, is_new = _footprint(forwards)
    available = int(_SHARE * free_memory(forwards.model)) if memory is None else memory
    options = _options(forwards, found, can_join=can_join)
    ways = [(Way(name, peak, peak <= available), engine) for name, peak, engine in options]
    chosen = next((way for way in ways if way[0].fits), min(ways, key=lambda way: way[0].peak))
    plan = Plan(tuple(way for way, _ in ways), chosen[0], available, chosen[1])
    if is_new:
        _log.info("%s", plan)
    return plan


_Option = tuple[str, int, Callable[[], Engine]]


def _options(forwards: Forwards, found: Footprint, *, can_join: bool) -> list[_Option]:
    """Names, predicted peaks and engines, the fastest first."""
    if not found.norm_calls:
        return [("microbatch by microbatch: no norm couples", found.saved, Joined)]
    times = _sizes(forwards)
    working = 2 * found.largest  # an activation and its gradient
    big = int(times * (found.saved + working))
    kept_away = int(times * 2.5 * working)
    one = found.saved // 2 + 3 * working + _GRAPH * len(forwards.microbatches)
    away = _away(forwards.model)
    if isinstance(forwards.model, DistributedDataParallel):
        return [
            ("forwards in step, in memory", big, Joined),
            (f"forwards in step, saved tensors {away[0]}", kept_away, lambda: Joined(away[1]())),
        ]
    last = (f"one microbatch at a time, the rest {away[0]}", one, lambda: Windowed(away[1]()))
    if not (can_join and _fit_together(forwards)):
        return [("forwards in step, in memory", big, Joined), last]
    options: list[_Option] = [("the big batch", big, BigBatch)]
    again = found.checkpointed
    if again is not None:
        peak = int(times * (again + working))
        options.append(("the big batch, blocks run again", peak, partial(BigBatch, None, True)))
    hooked = f"the big batch, saved tensors {away[0]}"
    options.append((hooked, kept_away, lambda: BigBatch(away[1]())))
    return [*options, last]


def _away(model: nn.Module) -> tuple[str, Callable[[], Store]]:
    return ("in host memory", HostStore) if is_on_device(model) else ("on disk", DiskStore)


def is_on_device(model: nn.Module) -> bool:
    """Whether any parameter is elsewhere than in the host's memory."""
    return any(parameter.device.type != "cpu" for parameter in model.parameters())


def _sizes(forwards: Forwards) -> float:
    """How many times the measured microbatch the window is."""
    sizes = [_samples(microbatch) for microbatch in forwards.microbatches]
    return sum(sizes) / max(sizes)


def _samples(microbatch: Any) -> int:
    try:
        return samples(microbatch)
    except BatchError:
        return max((tensor.numel() for tensor in tensors_in(microbatch)), default=1)


def _fit_together(forwards: Forwards) -> bool:
    try:
        samples(joined(forwards.microbatches))
    except (BatchError, ValueError):
        return False
    return True


def _footprint(forwards: Forwards) -> tuple[Footprint, bool]:
    """Measured once for a model in a mode and the shapes of a microbatch; whether it was now."""
    sizes = [_samples(microbatch) for microbatch in forwards.microbatches]
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    shapes = tuple((tuple(t.shape), t.dtype) for t in tensors_in(forwards.microbatches[largest]))
    modes = tuple(module.training for module in forwards.model.modules())
    trains = tuple(parameter.requires_grad for parameter in forwards.model.parameters())
    known = _measured.setdefault(forwards.model, {})
    key = hash((shapes, modes, trains))
    is_new = key not in known
    if is_new:
        known[key] = footprint(forwards, largest)
    return known[key], is_new


def free_memory(model: nn.Module) -> int:
    """Bytes that are free where the model is."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + held)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
