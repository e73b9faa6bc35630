"""Whose fault the changed output is: state put back entry by entry, the output watched.

From ``after`` to ``before`` the entries that differ are put back one layer and one kind at a time,
in the order in which the layers run. What each step gives back telescopes: the steps sum to the
whole. Beside it stands what each layer and each kind gives back when it is put back alone, which
may be negative: the parts of a layer can cancel out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frostline._batches import tensors_in
from frostline._calling import call
from frostline._names import canonical, named_modules, named_tensors, overlapping
from frostline._results import Result, elide, plural
from frostline._state import restoring
from frostline.errors import FrostlineError, SharedMemory

Kind = Literal["mean", "variance", "counter", "weight", "buffer"]

_STATISTICS: dict[str, Kind] = {
    "running_mean": "mean",
    "running_var": "variance",
    "num_batches_tracked": "counter",
}


@dataclass(frozen=True)
class Share:
    """What putting something back gives back of the change.

    Attributes:
        name: full name of the layer, or the kind where all layers are meant.
        kind: what of it; None for a whole layer.
        entries: the names that were put back.
        change: the distance of the output from the old one that went away, in the unit of
            :attr:`Attribution.total`; negative where it grew.
        points: accuracy that came back, in percentage points; None without labels.
    """

    name: str
    kind: Kind | None
    entries: tuple[str, ...]
    change: float
    points: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {**asdict(self), "entries": list(self.entries)}


@dataclass(frozen=True, eq=False)
class Attribution(Result):
    """The change of an output, split over what changed in the state.

    Attributes:
        total: root mean square over the elements of the output, ``after`` less ``before``.
        points: accuracy lost, in percentage points; None without labels.
        accuracy: accuracy before and after, in percent; None without labels.
        rows: a share for each layer and kind that differs, put back one after the other in forward
            order; their ``change`` sums to ``total`` and their ``points`` to ``points``.
        layers: each layer that differs, put back alone.
        kinds: each kind that differs, put back alone in all layers.
        left_out: entries that differ and cannot be put back, not being tensors of the model.
        exact: whether the output with everything put back is the old one, bit for bit, as it is
            wherever the model gives the same output twice and nothing is left out.
    """

    total: float
    points: float | None
    accuracy: tuple[float, float] | None
    rows: tuple[Share, ...]
    layers: tuple[Share, ...]
    kinds: tuple[Share, ...]
    left_out: tuple[str, ...]
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "version": 1,
            "total": self.total,
            "points": self.points,
            "accuracy": None if self.accuracy is None else list(self.accuracy),
            "rows": [share.to_dict() for share in self.rows],
            "layers": [share.to_dict() for share in self.layers],
            "kinds": [share.to_dict() for share in self.kinds],
            "left_out": list(self.left_out),
            "exact": self.exact,
        }

    def __str__(self) -> str:
        return "\n".join(_told(self))


def attribute(
    before: Mapping[str, Any], after: Mapping[str, Any], model: nn.Module, batch: Any
) -> Attribution:
    """Split the change of the output between two state dicts over layers and kinds of state.

    The model runs in eval mode without gradients, once for each layer and kind that differs, once
    for each layer, once for each kind, and twice more; it is left exactly as it was, also after an
    exception. What it holds itself is of no consequence: both states come from the arguments.

    Args:
        before: the old state dict, a copy: ``copy.deepcopy(model.state_dict())``.
        after: the new one, for example ``model.state_dict()``.
        model: a module that both fit.
        batch: a dict is called as ``model(**batch)``, a tuple or list as ``model(batch[0])``,
            anything else as ``model(batch)``. Integer labels of shape (N,) as ``batch[1]`` or
            ``batch["labels"]`` beside a first output of shape (N, classes) give accuracies too.

    Raises:
        TypeError: a state is no mapping, or the model no module.
        SharedMemory: an entry of ``before`` and one of ``after`` are the same memory.
        FrostlineError: an entry does not fit the model, or the output holds no finite numbers.

    Example:
        >>> import copy, torch
        >>> net = torch.nn.BatchNorm1d(1)
        >>> before = copy.deepcopy(net.state_dict())
        >>> _ = net(torch.tensor([[1.0], [3.0]]))
        >>> result = attribute(before, net.state_dict(), net, torch.tensor([[0.0], [1.0]]))
        >>> [(row.name, row.kind, round(row.change, 3)) for row in result.rows]
        [('(root)', 'mean', 0.182), ('(root)', 'variance', 0.033), ('(root)', 'counter', 0.0)]
        >>> abs(sum(row.change for row in result.rows) - result.total) < 1e-12
        True
    """
    _refuse_what_is_no_state(before, after, model)
    old, new = _by_name(before), _by_name(after)
    _refuse_shared(old, new)
    places = _places(model)
    _refuse_incomplete(old, new, model)
    differing = [n for n in dict.fromkeys([*new, *old]) if _differ(old.get(n), new.get(n))]
    moved = [name for name in differing if name in places and name in old and name in new]
    left_out = tuple(name for name in differing if name not in moved)
    for name in moved:
        _refuse_misfit(name, places[name], old[name], new[name])
    # Copies: either state may be the live model, which is overwritten from here on.
    old |= {name: old[name].detach().clone() for name in moved}
    new |= {name: new[name].detach().clone() for name in moved}
    with restoring(model), torch.no_grad():
        runner = _Runner(model, places, old, new, batch)
        return runner.attribution(moved, left_out)


def _refuse_what_is_no_state(before: Any, after: Any, model: Any) -> None:
    for name, value in (("before", before), ("after", after)):
        if not isinstance(value, Mapping):
            raise TypeError(
                f"`{name}` must be a state dict and is a {type(value).__name__}. Write"
                " fl.attribute(before, model.state_dict(), model, batch), where before is"
                " copy.deepcopy(model.state_dict()), taken before the training"
            )
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be an nn.Module and is a {type(model).__name__}")


def _refuse_incomplete(old: Mapping[str, Any], new: Mapping[str, Any], model: nn.Module) -> None:
    for title, state in (("before", old), ("after", new)):
        missing = [name for name in map(canonical, model.state_dict()) if name not in state]
        if missing:
            raise FrostlineError(
                f"`{title}` lacks {len(missing)} of the model's entries, the first: "
                f"{missing[0]!r}. Give both states whole: copy.deepcopy(model.state_dict())"
            )


def _by_name(state: Mapping[str, Any]) -> dict[str, Any]:
    return {canonical(name): value for name, value in state.items()}


def _refuse_shared(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    tensors = [{k: v for k, v in d.items() if isinstance(v, Tensor)} for d in (old, new)]
    same = [name for name, value in tensors[0].items() if value is tensors[1].get(name)]
    pairs = [(name, name) for name in same] + overlapping(tensors[0], tensors[1])
    if pairs:
        left, right = pairs[0]
        raise SharedMemory(
            f"before[{left!r}] and after[{right!r}] are the same memory"
            f" ({plural(len(pairs), 'pair')} in all), so they cannot differ:"
            " a state dict refers to the live model.\n"
            "Write, before the training: before = copy.deepcopy(model.state_dict())"
        )


def _places(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of the model by the name in the state dict; a tied one once, under its first name."""
    seen: set[int] = set()
    places: dict[str, Tensor] = {}
    for entry in named_tensors(model):
        if entry.persistent and id(entry.tensor) not in seen:
            seen.add(id(entry.tensor))
            places[entry.name] = entry.tensor
    return places


def _differ(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is not type(b) or bool(a != b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return True
    return a.numel() > 0 and not torch.equal(_bits(a), _bits(b).to(a.device))


def _bits(tensor: Tensor) -> Tensor:
    # Bytes and not values: NaN differs from itself, and -0.0 equals 0.0.
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _refuse_misfit(name: str, place: Tensor, old: Tensor, new: Tensor) -> None:
    for side, value in (("before", old), ("after", new)):
        if value.shape != place.shape or value.dtype != place.dtype:
            raise FrostlineError(
                f"{name}: does not fit the model\n"
                f"  in the model  {place.dtype} {tuple(place.shape)}\n"
                f"  in `{side}`{' ' * (9 - len(side))} {value.dtype} {tuple(value.shape)}\n"
                "Hand in the model that both state dicts were taken from."
            )


def _kind(name: str, place: Tensor) -> Kind:
    if isinstance(place, nn.Parameter):
        return "weight"
    return _STATISTICS.get(name.rpartition(".")[2], "buffer")


@dataclass(eq=False, repr=False)
class _Answer:
    """What the model said: all numbers of the output, and the accuracy in percent."""

    numbers: Tensor
    accuracy: float | None


@dataclass(eq=False, repr=False)
class _Runner:
    model: nn.Module
    places: Mapping[str, Tensor]
    old: Mapping[str, Tensor]
    new: Mapping[str, Tensor]
    batch: Any

    def attribution(self, moved: Sequence[str], left_out: tuple[str, ...]) -> Attribution:
        for name in self.places:
            if name in self.old and name in self.new:
                self._put(name, self.old[name])
        start = self._answer("before")
        order = self._forward_order()
        for name in moved:
            self._put(name, self.new[name])
        end = self._answer("after")
        layer = {name: name.rpartition(".")[0] for name in moved}
        kind = {name: _kind(name, self.places[name]) for name in moved}
        ranks = list(_STATISTICS.values())
        rank = {n: ranks.index(k) if k in ranks else len(ranks) for n, k in kind.items()}
        moved = sorted(moved, key=lambda n: (_position(layer[n], order), layer[n], rank[n]))

        steps = _grouped(moved, lambda n: (layer[n], kind[n]))
        layers = _grouped(moved, lambda n: (layer[n], None))
        kinds = _grouped(sorted(moved, key=rank.__getitem__), lambda n: ("all layers", kind[n]))
        alone = [self._alone(groups, start, end) for groups in (layers, kinds)]
        rows, last = self._telescope(steps, start, end)
        lost = _lost(start, end)
        return Attribution(
            total=_distance(end, start),
            points=lost,
            accuracy=None if lost is None else (_known(start), _known(end)),
            rows=tuple(rows),
            layers=tuple(alone[0]),
            kinds=tuple(alone[1]),
            left_out=left_out,
            exact=not left_out and torch.equal(_bits(last.numbers), _bits(start.numbers)),
        )

    def _telescope(
        self, steps: Iterable[_Group], start: _Answer, end: _Answer
    ) -> tuple[list[Share], _Answer]:
        rows, here = [], end
        for group in steps:
            for name in group.entries:
                self._put(name, self.old[name])
            there = self._answer(f"after, with {group.entries[-1]} put back,")
            rows.append(group.share(here, there, start))
            here = there
        return rows, here

    def _alone(self, groups: Iterable[_Group], start: _Answer, end: _Answer) -> Iterable[Share]:
        shares = []
        for group in groups:
            for name in group.entries:
                self._put(name, self.old[name])
            there = self._answer(f"after, with {group.entries[0]} put back,")
            shares.append(group.share(end, there, start))
            for name in group.entries:
                self._put(name, self.new[name])
        return shares

    def _put(self, name: str, value: Tensor) -> None:
        _write(self.places[name], value)

    def _answer(self, state: str) -> _Answer:
        with self._asked():
            output = call(self.model, self.batch)
            found = [t for t in tensors_in(output) if t.is_floating_point() or t.is_complex()]
            if not found:
                raise FrostlineError(
                    f"the output of {type(self.model).__name__} holds no tensor of floating-point "
                    f"numbers, but {type(output).__name__}; hand in a module that returns scores"
                )
            answer = _Answer(
                torch.cat([_real(t) for t in found]), _accuracy(output, found[0], self.batch)
            )
        if not bool(torch.isfinite(answer.numbers).all()):
            raise FrostlineError(
                f"the output with the state `{state}` holds numbers that are not finite, so there "
                "is no distance to split; look for NaN in that state first"
            )
        return answer

    def _forward_order(self) -> dict[str, int]:
        order: dict[str, int] = {}
        with self._asked():
            for name, module in named_modules(self.model):
                module.register_forward_pre_hook(_noting(order, name))
            call(self.model, self.batch)
        return order

    @contextmanager
    def _asked(self) -> Iterator[None]:
        """Eval mode for one run, each from the same start.

        A module that writes to itself even then must not carry it into the next run, and one that
        keeps a cache of its weights in eval mode drops it on the way through train().
        """
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        with restoring(self.model, values=False):
            self.model.train()
            self.model.eval()
            yield
        for buffer, value in buffers:
            if _differ(buffer, value):
                _write(buffer, value)


def _write(place: Tensor, value: Tensor) -> None:
    # Graphs that the user has not yet gone back through hold on to this version.
    with torch.autograd.grad_mode._unsafe_preserve_version_counter(place):
        place.copy_(value)


def _noting(order: dict[str, int], name: str) -> Callable[[nn.Module, Any], None]:
    def note(module: nn.Module, args: Any) -> None:
        order.setdefault(name, len(order))

    return note


def _position(layer: str, order: Mapping[str, int]) -> int:
    """When the layer runs; one that is not called itself runs after its nearest ancestor's last."""
    if layer in order:
        return order[layer]
    above = layer.rpartition(".")[0]
    while above and above not in order:
        above = above.rpartition(".")[0]
    inside = [n for name, n in order.items() if not above or name.startswith(f"{above}.")]
    return max(inside, default=order.get(above, 0))


@dataclass(eq=False, repr=False)
class _Group:
    name: str
    kind: Kind | None
    entries: tuple[str, ...]

    def share(self, here: _Answer, there: _Answer, start: _Answer) -> Share:
        change = _distance(here, start) - _distance(there, start)
        return Share(self.name, self.kind, self.entries, change, _lost(there, here))


def _grouped(names: Iterable[str], key: Callable[[str], tuple[str, Kind | None]]) -> list[_Group]:
    groups: dict[tuple[str, Kind | None], list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return [_Group(layer or "(root)", kind, tuple(v)) for (layer, kind), v in groups.items()]


def _real(tensor: Tensor) -> Tensor:
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    # As a copy: an output may be a tensor of the model, which is overwritten next.
    return flat.reshape(-1).to("cpu", torch.float64, copy=True)


def _distance(a: _Answer, b: _Answer) -> float:
    if a.numbers.shape != b.numbers.shape:
        raise FrostlineError("the output has another size with another state; nothing to compare")
    if a.numbers.numel() == 0:
        return 0.0
    return float((a.numbers - b.numbers).square().mean().sqrt())


def _accuracy(output: Any, first: Tensor, batch: Any) -> float | None:
    labels = _labels(batch)
    scores = output["logits"] if isinstance(output, Mapping) and "logits" in output else first
    if labels is None or scores.ndim != 2 or labels.shape != scores.shape[:1] or not len(labels):
        return None
    return 100 * int((scores.argmax(1) == labels.to(scores.device)).sum()) / len(labels)


def _labels(batch: Any) -> Tensor | None:
    labels: Any = None
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    elif isinstance(batch, tuple | list) and len(batch) > 1:
        labels = batch[1]
    whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    return labels if whole else None


def _known(answer: _Answer) -> float:
    return float("nan") if answer.accuracy is None else answer.accuracy


def _lost(better: _Answer, worse: _Answer) -> float | None:
    if better.accuracy is None or worse.accuracy is None:
        return None
    return better.accuracy - worse.accuracy


def _told(result: Attribution) -> Iterator[str]:
    yield from _headline(result)
    if result.rows:
        yield ""
        yield from _table("put back in forward order, one after the other", result.rows, result)
        yield ""
        yield from _table("each layer put back alone", result.layers, result)
        yield ""
        yield from _table("each kind put back alone, in all layers", result.kinds, result)
    if result.left_out:
        yield ""
        yield f"not put back, being no tensors of the model: {len(result.left_out)}"
        yield from (f"  {elide(name, 76)}" for name in result.left_out)
    if result.rows and not result.exact and not result.left_out:
        yield ""
        yield "With everything put back the output is not the old one in every bit: the model"
        yield "does not give the same output twice, and the shares are as exact as that."


def _headline(result: Attribution) -> Iterator[str]:
    if not result.rows and not result.left_out:
        yield "Attribution  nothing differs between the two states; the output is the same"
        return
    count = plural(sum(len(row.entries) for row in result.rows), "tensor")
    differ = "differs" if count.startswith("1 ") else "differ"
    yield f"Attribution  {count} {differ}; the output changed by {result.total:.4g} (rms)"
    if result.accuracy is not None:
        old, new = result.accuracy
        yield f"             accuracy {old:.1f} % before, {new:.1f} % after"


def _table(title: str, shares: Sequence[Share], result: Attribution) -> Iterator[str]:
    points = result.points is not None
    yield f"{title:<49}{'gives back':>12}{'of it':>8}" + (f"{'points':>9}" if points else "")
    told = [share for share in shares if share.change or share.points]
    for share in told:
        name = elide(share.name, 36)
        part = f"{share.change / result.total:.1%}" if result.total else "-"
        tail = f"{share.points:>+9.1f}" if share.points is not None else ""
        yield f"  {name:<37}{share.kind or '':<10}{share.change:>12.4g}{part:>8}{tail}"
    if len(told) < len(shares):
        yield f"  {len(shares) - len(told)} more, exactly nothing each"
