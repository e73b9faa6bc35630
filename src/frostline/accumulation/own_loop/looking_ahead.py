"""Batches of which one knows whether another follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Generic, TypeVar, cast

from torch import Tensor

from frostline.errors import AccumulationError

T = TypeVar("T")


def looking_ahead(batches: Iterable[T]) -> Iterator[tuple[T, bool]]:
    """Each batch, and whether it is the last one, for which one more is read than is given.

    An exception in reading ahead is raised after the batch that was read before it was given.

    Example:
        >>> list(looking_ahead("abc"))
        [('a', False), ('b', False), ('c', True)]
    """
    iterator = iter(batches)
    try:
        current = next(iterator)
    except StopIteration:
        return
    while True:
        try:
            following = next(iterator)
        except StopIteration:
            yield current, True
            return
        except Exception:
            yield current, False
            raise
        yield current, False
        current = following


class Iteration(Generic[T]):
    """What ``Accumulator.iterate`` gives: as long as the loader, and as often iterable.

    Args:
        batches: the loader.
        run: gives its batches, one pass.
    """

    def __init__(self, batches: Iterable[T], run: Callable[[Iterable[T]], Iterator[T]]) -> None:
        self._batches, self._run = batches, run

    def __iter__(self) -> Iterator[T]:
        return self._run(self._batches)

    def __len__(self) -> int:
        return len(cast(Sized, self._batches))


def check_loader(loader: Any) -> None:
    """Refuse what gives no batches.

    Raises:
        AccumulationError: it cannot be iterated, or is one batch.
    """
    if isinstance(loader, Tensor | Mapping | str) or not _is_iterable(loader):
        raise AccumulationError(
            f"iterate(loader) got a {type(loader).__name__}; expected what gives one microbatch "
            "after the other: a DataLoader, a list of batches, a generator"
        )


def _is_iterable(value: Any) -> bool:
    try:
        iter(value)
    except TypeError:
        return False
    return True
