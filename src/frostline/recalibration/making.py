"""From a calibration set to a :class:`Recalibration`: run, compare, write."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from frostline._batches import tensors_in
from frostline._results import plural
from frostline.errors import AccumulationError
from frostline.recalibration.calibration_set import Drawn, draw
from frostline.recalibration.layerwise import Layerwise
from frostline.recalibration.merged import Merging
from frostline.recalibration.needs import Alone
from frostline.recalibration.norms import NOT_CALLED, Norm, find
from frostline.recalibration.observing import Observing
from frostline.recalibration.progress import progress
from frostline.recalibration.recalibrate import Method
from frostline.recalibration.result import Recalibration, batches
from frostline.recalibration.room import Room, room
from frostline.recalibration.running import calibrating, copied, forward
from frostline.recalibration.writing import Fresh, write
from frostline.selection import Selector

_log = logging.getLogger("frostline")


def make(
    model: nn.Module, given: Iterable[Any], method: Method, select: Selector, samples: int | None
) -> Recalibration:
    """Run the batches, and write what the norms saw if all went well."""
    norms, left = find(model, select)
    with calibrating(model, norms) as ran:
        drawn = draw(given, samples, repeatable=method == "layerwise")
        if method == "layerwise":
            seen, there = _layerwise(model, norms, ran, drawn, samples)
        else:
            seen, there = _merged(model, norms, drawn), None
        _refuse_unseen(norms, ran, seen)
    fresh = _statistics(norms, seen, drawn.count)
    old = [entry for one in fresh for entry in one.old()]
    result = Recalibration(
        model=type(model).__name__,
        method=method,
        samples=drawn.samples,
        batches=drawn.count,
        called=drawn.called,
        rows=tuple(one.compared() for one in fresh),
        left=left | {n.name: NOT_CALLED for n in norms if id(n.mean) not in seen.populations},
        waiting=None if there is None else str(there),
        old={entry.name: entry.value for entry in old},
        _buffers=tuple(old),
    )
    write(fresh)
    return result


def _layerwise(
    model: nn.Module,
    norms: list[Norm],
    ran: Counter[int],
    drawn: Drawn,
    samples: int | None,
) -> tuple[Observing, Room]:
    """What the norms saw, and where the batches waited."""
    assert drawn.expected is not None  # noqa: S101
    alone = Alone(model, norms)
    first = copied(drawn.first())
    needs = alone.measure(partial(forward, model, first, 0))
    _refuse_unseen(norms, ran, alone)
    loaded = sum(tensor.nbytes for tensor in tensors_in(first))
    del first
    device, count = norms[0].mean.device, drawn.expected
    there = room(needs.times(count), loaded * count, device, samples)
    words = f"recalibrating: {batches(count)} wait at {plural(needs.calls, 'norm call')}, {there}"
    _log.info(words)
    seen = Observing(model, norms)
    with progress(count * (needs.calls + 1), words) as tick, there.waiting(model) as waiting:
        Layerwise(model, drawn, seen, waiting, tick).run()
    return seen, there


def _merged(model: nn.Module, norms: list[Norm], drawn: Drawn) -> Observing:
    """What the norms saw."""
    seen = Merging(model, norms)
    with progress(drawn.expected, "recalibrating, batch by batch") as tick, seen:
        for k, batch in enumerate(drawn):
            forward(model, copied(batch), k)
            tick()
    return seen


def _refuse_unseen(norms: list[Norm], ran: Counter[int], seen: Observing) -> None:
    """Norms that ran and whose calls did not come by.

    Raises:
        AccumulationError: there is one.
    """
    for norm in norms:
        if ran[id(norm.mean)] and not seen.calls[id(norm.mean)]:
            raise AccumulationError(
                f"{norm.name}, of type {type(norm.module).__name__}, normalises without calling "
                "torch.nn.functional.batch_norm, so what it sees cannot be joined over batches. "
                "Select others, and it runs as in eval mode: for example "
                "fl.recalibrate(model, batches, select=nn.BatchNorm2d)"
            )


def _statistics(norms: list[Norm], seen: Observing, batches: int) -> list[Fresh]:
    """What each norm is to get, in the order in which they ran.

    Raises:
        AccumulationError: a norm saw too little, or none ran.
    """
    owners = {id(norm.mean): norm for norm in reversed(norms)}
    fresh = [_of(owners[key], seen, batches) for key in seen.populations]
    if not fresh:
        raise AccumulationError(
            f"no batch reached a norm that takes part; the first of {len(norms)} is "
            f"{norms[0].name}. Does the forward call it?"
        )
    return fresh


def _of(norm: Norm, seen: Observing, batches: int) -> Fresh:
    key = id(norm.mean)
    population = seen.populations[key]
    if population.values < 2:
        raise AccumulationError(
            f"{norm.name} has one value for each channel in the whole calibration set, which has "
            "no variance. Pass more samples"
        )
    counted = seen.counted_up[id(norm.counter)] if norm.counter is not None else 0
    return Fresh(
        norm,
        _each(seen.calls[key], batches),
        population.values,
        _each(counted, batches),
        *population.statistics(),
    )


def _each(total: int, batches: int) -> int:
    """In one forward; rounded up where the batches differ."""
    return -(-total // batches)
