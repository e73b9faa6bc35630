"""The runs of a probe: samples as they are, twice over, one half replaced, and both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias
from weakref import ref

import torch
from torch import Tensor

from frostline.probing.calls import Passing, Path, Site
from frostline.probing.leaving import Left, earliest
from frostline.probing.rows import (
    Moved,
    Seen,
    are_sorted,
    arrangements,
    effect,
    told_by,
)

Base: TypeAlias = dict[Site, Seen]


class _Known:
    """Tensors that were looked at already in this run and have not been written since.

    What one module returns the next one takes, so this spares half of the work.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Callable[[], object], int, Seen | None]] = {}

    def __contains__(self, tensor: Tensor) -> bool:
        entry = self._entries.get(id(tensor))
        return entry is not None and entry[0]() is tensor and entry[1] == tensor._version

    def get(self, tensor: Tensor) -> Seen | None:
        return self._entries[id(tensor)][2] if tensor in self else None

    def add(self, tensor: Tensor, seen: Seen | None = None) -> None:
        self._entries[id(tensor)] = (ref(tensor), tensor._version, seen)


class First:
    """The first run: copies all that passes.

    Attributes:
        base: what passed, in order.
        places: where that was.
    """

    def __init__(self) -> None:
        self.base: Base = {}
        self.places: dict[Site, Passing] = {}
        self._known = _Known()

    def __call__(self, passing: Passing, tensor: Tensor) -> Tensor:
        seen = self._known.get(tensor)
        if seen is None:
            seen = Seen(tensor.detach().clone())
            self._known.add(tensor, seen)
        self.base[passing.site] = seen
        self.places[passing.site] = passing
        return tensor


class Doubled:
    """The same samples twice: tells which dimensions are theirs.

    What passes is replaced by the first run's tensor, twice over, so that random numbers are the
    same and the loss differs by its reduction alone.
    """

    def __init__(self, base: Base, count: int) -> None:
        self._base, self._count = base, count
        self._visited: set[Site] = set()

    def __call__(self, passing: Passing, tensor: Tensor) -> Tensor:
        seen = self._base.get(passing.site)
        self._visited.add(passing.site)
        if seen is None or seen.value.dtype != tensor.dtype:
            return tensor
        seen.take_dimension(self._count, tensor.shape)
        if seen.dim is None:
            return tensor
        twice = torch.cat([seen.value, seen.value], seen.dim)
        return _standing_in(twice, tensor) if twice.shape == tensor.shape else tensor

    def guess_what_was_not_seen(self) -> None:
        """A leading dimension as large as the batch is the samples', where this run came not by."""
        for site in self._base.keys() - self._visited:
            seen = self._base[site]
            if seen.dim is None and seen.value.shape[:1] == (self._count,):
                seen.dim = 0


def _standing_in(value: Tensor, tensor: Tensor) -> Tensor:
    """``value``, with gradients into ``tensor`` for a loss that asks for some by itself."""
    if not tensor.requires_grad:
        return value
    nothing = tensor - tensor.detach()
    return torch.where(nothing == 0, value + nothing, value)


@dataclass(eq=False)
class Replaced:
    """A run with others in the places of one half of the samples.

    What moved and belongs to the other half is put back, so that each module gets clean inputs and
    answers for itself alone.

    Attributes:
        base: the first run.
        count: samples.
        first: whether the first half is replaced.
        left: what is not put back.
        keep: sites of which the tensor is kept in any case.
        moved: what moved, where the samples' dimension is known.
        anything: whether anything moved at all.
        other_shapes: sites whose tensor had another shape than in the first run.
        calls: which there were.
    """

    base: Base
    count: int
    first: bool
    left: Left = field(default_factory=Left)
    keep: frozenset[Site] = frozenset()
    moved: dict[Site, Moved] = field(default_factory=dict)
    anything: bool = False
    other_shapes: set[Site] = field(default_factory=set)
    calls: set[Path] = field(default_factory=set)
    _known: _Known = field(default_factory=_Known)
    _arranged: dict[tuple[Path, int], Tensor] = field(default_factory=dict)

    @property
    def strays(self) -> frozenset[Site]:
        """Sites where samples of the other half moved."""
        return frozenset(site for site, moved in self.moved.items() if moved.strays)

    @property
    def unsteady(self) -> dict[Path, int]:
        """Calls that made other calls than in the first run, or with other shapes: since which."""
        differing = {site.path for site in self.base} ^ self.calls
        return earliest(differing | {site.path for site in self.other_shapes})

    def __call__(self, passing: Passing, tensor: Tensor) -> Tensor:
        site = passing.site
        self.calls.add(site.path)
        seen = self.base.get(site)
        if seen is None:
            return tensor
        if not seen.fits(tensor):
            self.other_shapes.add(site)
            return tensor
        clean = tensor if tensor in self._known else self._cleaned(site, seen, tensor)
        if seen.first is not None:
            self._arranged[site.path, len(seen.first)] = seen.first
        self._known.add(clean)
        return clean

    def _cleaned(self, site: Site, seen: Seen, tensor: Tensor) -> Tensor:
        now = tensor.detach()
        elements = seen.moved_in(now)
        if not bool(elements.any()):
            return tensor
        self.anything = True
        if seen.dim is None:
            return tensor
        rows = elements.movedim(seen.dim, 0).flatten(1).any(1) if elements.dim() > 1 else elements
        own = self._own(site, seen, rows)
        strays = rows & ~own
        if not bool(strays.any()):
            kept = now.clone() if site in self.keep else None
            self.moved[site] = Moved(rows, kept=kept)
            return tensor
        others = seen.along(~own)
        several = seen.parts(self.count) > 1
        self.moved[site] = Moved(
            rows,
            strays=True,
            elements=elements,
            sorted=several and are_sorted(now, seen.value, seen.dim),
            effect=effect(now, seen.value, others),
            kept=now.clone(),
        )
        return tensor if site in self.left else torch.where(others, seen.value, tensor)

    def _own(self, site: Site, seen: Seen, rows: Tensor) -> Tensor:
        if seen.first is None:
            size = len(rows)
            possible = arrangements(size, self.count, rows.device)
            # Where samples are mixed already, they stand as in what went into this call.
            guesses = (
                told_by(possible, rows, first=self.first),
                self._arranged.get((site.path, size)),
                self._arranged.get((site.path[:-1], size)),
                possible[0],
            )
            seen.first = next(guess for guess in guesses if guess is not None)
        return seen.first if self.first else ~seen.first


class Both:
    """A run with both halves replaced, each of which sees the other as it was in the first run.

    Args:
        base: the first run.
        one: the run with the first half replaced.
        other: the run with the second half replaced.
    """

    def __init__(self, base: Base, one: Replaced, other: Replaced) -> None:
        self._base, self._one, self._other = base, one, other
        strays = one.strays | other.strays
        self._strays = {site for site in strays if site not in one.left}

    def __call__(self, passing: Passing, tensor: Tensor) -> Tensor:
        site = passing.site
        if site not in self._strays:
            return tensor
        seen = self._base[site]
        if not seen.fits(tensor) or seen.first is None:
            return tensor
        one, other = (self._half(run, site, seen) for run in (self._one, self._other))
        return _standing_in(torch.where(seen.along(seen.first), one, other), tensor)

    def _half(self, run: Replaced, site: Site, seen: Seen) -> Tensor:
        kept = run.moved[site].kept if site in run.moved else None
        return seen.value if kept is None else kept


class Again:
    """The first run once more, after a forward with other samples that left its state behind.

    Attributes:
        changed: sites where something moved all the same, and by how much in root mean squares.
    """

    def __init__(self, base: Base) -> None:
        self.changed: dict[Site, float] = {}
        self._base = base
        self._known = _Known()

    def __call__(self, passing: Passing, tensor: Tensor) -> Tensor:
        seen = self._base.get(passing.site)
        if seen is None or not seen.fits(tensor) or tensor in self._known:
            return tensor
        now = tensor.detach()
        elements = seen.moved_in(now)
        if bool(elements.any()):
            self.changed[passing.site] = effect(now, seen.value, elements)
            tensor = _standing_in(seen.value, tensor)
        self._known.add(tensor)
        return tensor
