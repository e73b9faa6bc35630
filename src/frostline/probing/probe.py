"""What couples the samples of a batch: a model is run on a few, some of them replaced by others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from frostline._state import restoring
from frostline.behaviours import behaviour
from frostline.probing.calls import Calls, Passing, Site, Visit, is_dense_float
from frostline.probing.joining import JoinedNorms, Statistics
from frostline.probing.leaving import Left, earliest
from frostline.probing.putting_back import from_the_same_start
from frostline.probing.rows import is_coupled, noise
from frostline.probing.runs import Again, Both, Doubled, First, Replaced
from frostline.probing.samples import Samples

Reduction: TypeAlias = Literal["mean", "sum", "unknown"]

_ROUNDS = 8  # more than two only where code sorts what it gets by its content
_SAME = 1e-3  # of the loss: far above rounding, far below what one more term would add


@dataclass(frozen=True, eq=False)
class Mixed:
    """A tensor in which samples of one half depend on the other half.

    Attributes:
        place: where.
        effect: largest change of another sample, in root mean squares of the tensor.
    """

    place: Passing
    effect: float


@dataclass(frozen=True, eq=False)
class Found:
    """What a probe found.

    Attributes:
        mixed: tensors that mix samples, in the order of the run.
        total: by how much a result without a samples' dimension, as the loss, is not a sum over
            samples, as a share of its size; 0 within rounding, None if there is no such result.
        moved: whether anything in the model moved with the samples.
        compared: whether the model returned any tensor that could be compared.
        untold: whether the samples in its output could not be told apart.
        nan: whether the output or the result held no number in some place.
    """

    mixed: tuple[Mixed, ...]
    total: float | None
    moved: bool
    compared: bool
    untold: bool
    nan: bool

    @property
    def mixes(self) -> bool:
        """Whether anything does."""
        return bool(self.mixed or self.total)


class Probe:
    """Runs a function of a batch and watches the modules of ``model``.

    To be used inside of :func:`frostline.probing.putting_back.put_back`.

    Args:
        model: whose modules are watched.
        run: what the user would compute of a batch by this model.
        samples: the few.
        beside: modules that ``run`` uses beside the model, to be put back too.
        joined: whether batch norm calls that use the batch get statistics that no sample moves.

    Attributes:
        samples: the few.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Any], Any],
        samples: Samples,
        *,
        beside: Sequence[nn.Module] = (),
        joined: bool = False,
    ) -> None:
        self.samples = samples
        self._model, self._run, self._beside = model, run, beside
        self._joined = joined
        try:
            self._begin(grad=False)
        except RuntimeError:  # it asks for gradients itself, as a gradient penalty does
            self._begin(grad=True)
        self._twice = self._doubled()

    def _begin(self, *, grad: bool) -> None:
        self._grad = grad
        self._statistics: list[Statistics] | None = [] if self._joined else None
        self._first = First()
        self._result = self._watched(self.samples.batch(), self._first)

    def reduction(self) -> Reduction:
        """How the result, a loss, grows when each sample is there twice."""
        if self._twice is None or len(self._twice) != 1 or len(self._result) != 1:
            return "unknown"
        once, twice = self._result[0], self._twice[0]
        if once.numel() != 1 or twice.numel() != 1:
            return "unknown"
        near = max(_SAME, noise(once.dtype)) * float(once.abs())
        if not near > 0:
            return "unknown"
        if float((twice - once).abs()) <= near:
            return "mean"
        return "sum" if float((twice - 2 * once).abs()) <= near else "unknown"

    def found(self) -> Found:
        """Replace one half, then the other, and see what moves."""
        one, other, results = self._replaced()
        left = {site for site in one.strays | other.strays if site in one.left}
        mixed = [
            Mixed(self._first.places[site], max(_effects(site, one, other)))
            for site in self._first.base
            if site not in left and self._is_coupled(site, one, other)
        ]
        top = {site for site in self._first.base if len(site.path) == 1 and site.side == "out"}
        return Found(
            mixed=tuple(mixed),
            total=self._total(one, other, results),
            moved=one.anything and other.anything,
            compared=bool(top),
            untold=bool(top & (left | one.other_shapes | other.other_shapes)),
            nan=any(bool(t.isnan().any()) for t in self._shown(top)),
        )

    def remembering(self) -> tuple[Mixed, ...]:
        """Where the result depends on what a forward of other samples left behind.

        Accumulation makes one forward after the other, the big batch makes one.
        """
        again = Again(self._first.base)
        with self._set_up():
            with restoring(nn.Module(), values=False):  # of no model, so the generators alone
                self._run(self.samples.batch(first=True, second=True))
            Calls(self._model, again)
            self._run(self.samples.batch())
        places = self._first.places
        return tuple(Mixed(places[site], size) for site, size in again.changed.items())

    def _shown(self, top: Iterable[Site]) -> list[Tensor]:
        """What the model returned, and what was made of it."""
        return [*(self._first.base[site].value for site in top), *self._result]

    def _watched(self, batch: Any, visit: Visit) -> list[Tensor]:
        with self._set_up():
            Calls(self._model, visit)
            leaves = pytree.tree_leaves(self._run(batch))
            return [leaf.detach().clone() for leaf in leaves if is_dense_float(leaf)]

    @contextmanager
    def _set_up(self) -> Iterator[None]:
        statistics = self._statistics
        norms = nullcontext() if statistics is None else JoinedNorms(self._model, statistics)
        with from_the_same_start([self._model, *self._beside]), norms:
            _quieten(self._model)
            with torch.set_grad_enabled(self._grad):
                yield

    def _doubled(self) -> list[Tensor] | None:
        """The results for twice the samples; None for a model that takes no such batch."""
        doubled = Doubled(self._first.base, self.samples.count)
        try:
            return self._watched(self.samples.doubled(), doubled)
        except Exception:
            return None
        finally:
            doubled.guess_what_was_not_seen()

    def _replaced(self) -> tuple[Replaced, Replaced, list[list[Tensor]]]:
        """The two runs, repeated while something was put back that no sample had mixed."""
        left = Left()
        for _ in range(_ROUNDS):
            one, first = self._half(first=True, left=left)
            other, second = self._half(first=False, left=left, keep=one.strays)
            more = self._to_be_left(left, one, other)
            if more == left:
                break
            left = more
        return one, other, [first, second]

    def _to_be_left(self, left: Left, one: Replaced, other: Replaced) -> Left:
        strays = {site for site in one.strays | other.strays if site not in left}
        mixed = {site for site in strays if self._is_coupled(site, one, other)}
        sorted_ = {
            site.path
            for site in strays - mixed
            if len(site.path) > 1 and self._first.base[site].parts(self.samples.count) > 1
        }
        unsteady = [one.unsteady, other.unsteady, earliest(sorted_)]
        callers = {call for found in unsteady for call in found}
        begins = {call: min(f[call] for f in unsteady if call in f) for call in callers}
        mixing = {site.path for site in mixed if site.side == "out"}
        return left.with_more(strays - mixed, begins, mixing)

    def _is_coupled(self, site: Site, one: Replaced, other: Replaced) -> bool:
        moved = one.moved.get(site), other.moved.get(site)
        return is_coupled(self._first.base[site], self.samples.count, *moved)

    def _half(
        self, *, first: bool, left: Left, keep: Iterable[Site] = ()
    ) -> tuple[Replaced, list[Tensor]]:
        run = Replaced(self._first.base, self.samples.count, first, left, frozenset(keep))
        return run, self._watched(self.samples.batch(first=first, second=not first), run)

    def _total(self, one: Replaced, other: Replaced, results: list[list[Tensor]]) -> float | None:
        which = self._without_samples(results)
        if not which:
            return None
        if other.strays - one.strays:  # of these the first run kept nothing
            one, _ = self._half(first=True, left=one.left, keep=other.strays)
        visit = Both(self._first.base, one, other)
        both = self._watched(self.samples.batch(first=True, second=True), visit)
        return max(_mixed_difference([r[i] for r in (self._result, *results, both)]) for i in which)

    def _without_samples(self, results: list[list[Tensor]]) -> list[int]:
        """Which of the results have no samples' dimension, and so must be sums over them."""
        if any(len(result) != len(self._result) for result in results):
            return []
        shapes = [tensor.shape for tensor in self._result]
        if self._twice is not None and len(self._twice) == len(shapes):
            grown = [a != b.shape for a, b in zip(shapes, self._twice, strict=True)]
        else:
            grown = [shape[:1] == (self.samples.count,) for shape in shapes]
        same = [all(r[i].shape == shape for r in results) for i, shape in enumerate(shapes)]
        return [i for i in range(len(shapes)) if same[i] and not grown[i]]


def look(
    model: nn.Module,
    run: Callable[[Any], Any],
    samples: Samples,
    *,
    beside: Sequence[nn.Module] = (),
    joined: bool = False,
) -> tuple[Probe, Found]:
    """A probe and what it found; with noise if nothing moved, since the samples are all alike."""
    probe = Probe(model, run, samples, beside=beside, joined=joined)
    found = probe.found()
    if found.moved or samples.is_stirred:
        return probe, found
    return look(model, run, samples.stirred(), beside=beside, joined=joined)


def _quieten(model: nn.Module) -> None:
    """Dropout and its like couple nothing, but may draw by the number of rows they get."""
    for module in model.modules():
        if module.training and (doing := behaviour(module)) is not None and doing.kind == "random":
            module.training = False


def _effects(site: Site, *runs: Replaced) -> list[float]:
    return [run.moved[site].effect for run in runs if site in run.moved]


def _mixed_difference(values: list[Tensor]) -> float:
    """L(a, b) - L(a', b) - L(a, b') + L(a', b') as a share of L; 0 within rounding."""
    first, one, other, both = (value.double() for value in values)
    scale = float(torch.stack([first, one, other, both]).abs().max())
    distance = float((first - one - other + both).abs().max())
    if distance != distance or scale == float("inf"):
        return float("inf")
    return distance / scale if distance > noise(values[0].dtype) * scale else 0.0
