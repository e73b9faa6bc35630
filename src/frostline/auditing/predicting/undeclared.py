"""Which arguments an operation writes: by its schema, and for norms by what their kernels do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class _Statistics(NamedTuple):
    """Positions in the arguments of an operation that keeps running statistics.

    Attributes:
        written: the statistics.
        training: of the flag without which it writes nothing; None if it always does.
        momentum: of the share of the new value.
    """

    written: tuple[int, int]
    training: int | None
    momentum: int


_NORM = _Statistics((3, 4), 5, 6)
# The first three write and their schemas do not say so; the legit one says so in eval mode, too.
STATISTICS: Mapping[str, _Statistics] = {
    "native_batch_norm": _NORM,
    "cudnn_batch_norm": _NORM,
    "miopen_batch_norm": _NORM,
    "_native_batch_norm_legit": _NORM,
    "_batch_norm_with_update": _Statistics((3, 4), None, 5),
    "batch_norm_gather_stats": _Statistics((3, 4), None, 5),
    "batch_norm_gather_stats_with_counts": _Statistics((3, 4), None, 5),
    "batch_norm_update_stats": _Statistics((1, 2), None, 3),
}


class Written(NamedTuple):
    """One tensor that an operation writes, and the arguments as they are for it alone.

    Attributes:
        tensor: the target.
        args: positional arguments, the target first; of lists the element that belongs to it.
        kwargs: the others.
    """

    tensor: Tensor
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def written_by(func: Any, name: str, args: tuple[Any, ...], kwargs: Any) -> Iterator[Written]:
    """Every tensor that a call writes.

    Args:
        func: the operation.
        name: of it, without its namespace.
        args: its positional arguments.
        kwargs: the others.
    """
    statistics = STATISTICS.get(name)
    if statistics is not None:
        yield from _statistics(statistics, args, kwargs)
        return
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[place] if place < len(args) else kwargs.get(argument.name)
        if isinstance(given, Tensor):
            yield Written(given, (given, *_without(args, place)), kwargs)
        elif isinstance(given, list | tuple):
            for i, tensor in enumerate(given):
                yield Written(tensor, (tensor, *_of(i, _without(args, place))), kwargs)


def _statistics(found: _Statistics, args: tuple[Any, ...], kwargs: Any) -> Iterator[Written]:
    if found.training is not None and not args[found.training]:
        return
    for place in found.written:
        if isinstance(args[place], Tensor):
            yield Written(args[place], (args[place], args[0], args[found.momentum]), kwargs)


def _without(args: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    return args[:place] + args[place + 1 :]


def _of(i: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of each list of a foreach operation the element for its tensor ``i``."""
    return tuple(arg[i] if isinstance(arg, list | tuple) and i < len(arg) else arg for arg in args)
