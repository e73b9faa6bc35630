"""A place where a training step may run, after which everything is as before."""

from __future__ import annotations

from collections import UserDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.optim import Optimizer

from frostline._state import Snapshot, _Leaf, _Tensors, _Value, _Wrapper, pieces
from frostline.behaviours.untouched import untouched
from frostline.freezing import live_parts
from frostline.freezing.record import WATCH
from frostline.guarding import rounds

Copies = Mapping[int, list[Tensor]]
"""By id of a tensor: copies of the pieces of memory behind it, as they were at the entry."""


@contextmanager
def sandbox(
    model: nn.Module,
    optimizer: Optimizer | None = None,
    batch: Any = None,
    beside: Sequence[nn.Module] = (),
) -> Iterator[Copies]:
    """Let a step run in full, and put everything back, also after an exception.

    What :func:`frostline.behaviours.untouched.untouched` and :class:`frostline._state.Snapshot`
    know, and beside that: attributes of the optimizer (schedulers patch its ``step``), of
    optimizers inside of it, and of frozen parts; containers in attributes and in the batch, with
    the tensors in them; classes of modules; versions of gradients and of optimizer state; how
    often held modules ignored a call. Guards do not hear of steps inside.

    Not put back is what lies behind other objects of one's own: files, logs, a cache in an object
    that is neither a module, a container nor an optimizer.

    Args:
        model: the root.
        optimizer: the one that steps.
        batch: its tensors and containers are put back, too.
        beside: modules that the loss uses beside the model.

    Yields:
        The bytes at the entry, once in memory: of parameters, buffers, plain tensor attributes,
        and of tensors in containers.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> with sandbox(net, optimizer):
        ...     net(torch.randn(4, 2)).sum().backward()
        ...     optimizer.step()
        >>> net[1].num_batches_tracked.item(), net[0].weight.grad
        (0, None)
    """
    root = nn.ModuleList([model, *beside])  # one walk, so that what is shared is copied once
    optimizers = list(_all_of(optimizer)) if optimizer is not None else []
    kept = _Containers()
    for module in root.modules():
        kept.add(v for name, v in vars(module).items() if _may_hold(v) and name not in _WALKED)
    kept.add([batch])
    with ExitStack() as stack:
        stack.enter_context(_attributes_kept(optimizers, kept))
        stack.enter_context(_attributes_kept(_parts(), kept))
        stack.enter_context(_guards_deaf())
        stack.enter_context(_classes_kept(root))
        stack.enter_context(kept.put_back())
        stack.enter_context(torch.inference_mode(False))
        snapshot = Snapshot.take(root)
        leaves = [leaf for tensors in snapshot._tensors for leaf in tensors.leaves]
        known = {id(tensor) for leaf in leaves for tensor in (leaf.tensor, leaf.grad)}
        loose = _Tensors([t for t in kept.tensors if id(t) not in known], values=True)
        stack.enter_context(_versions_kept([*leaves, *loose.leaves], kept.tensors))
        watched = [(m, vars(m)[WATCH]) for m in root.modules() if WATCH in vars(m)]
        stack.enter_context(untouched(root, batch, values=False))
        stack.callback(snapshot.restore)
        stack.callback(loose.restore)
        for module, name in watched:  # a first forward under a hold is compared, as in a real step
            vars(module)[WATCH] = name
        yield _copies_of(v for tensors in (*snapshot._tensors, loose) for v in tensors._values)


def _all_of(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizer, and those that it keeps in its attributes."""
    yield optimizer
    for value in vars(optimizer).values():
        inner = value if isinstance(value, list | tuple) else (value,)
        yield from (o for o in inner if isinstance(o, Optimizer) and o is not optimizer)


def _parts() -> Iterator[Any]:
    """The live parts and their terms: whoever calls ``train()`` lets them look after themselves."""
    for part in live_parts.all_parts():
        yield part
        yield part._terms  # type: ignore[attr-defined]


@contextmanager
def _attributes_kept(objects: Iterable[Any], kept: _Containers) -> Iterator[None]:
    """Attributes of objects, as objects, and the containers in them."""
    owners = [(each, dict(vars(each))) for each in objects]
    for _, own in owners:
        kept.add(own.values())
    try:
        yield
    finally:
        for each, own in owners:
            vars(each).clear()
            vars(each).update(own)


@contextmanager
def _guards_deaf() -> Iterator[None]:
    """No guard takes a step in here for one of the user's."""
    listeners, rounds._listeners[:] = list(rounds._listeners), []
    try:
        yield
    finally:
        rounds._listeners[:] = listeners


@contextmanager
def _classes_kept(root: nn.Module) -> Iterator[None]:
    """A module that was watched gets another class in its first forward."""
    classes = [(module, type(module)) for module in root.modules()]
    try:
        yield
    finally:
        for module, cls in classes:
            if type(module) is not cls:
                module.__class__ = cls


def _versions_kept(
    leaves: Iterable[_Leaf], others: Iterable[Tensor]
) -> _unsafe_preserve_version_counter:
    own = [t for leaf in leaves for t in (leaf.tensor, leaf.grad) if t is not None]
    found = {id(t): t for t in (*own, *others) if not t.is_inference()}
    return _unsafe_preserve_version_counter(tuple(found.values()))


def _copies_of(values: Iterable[_Value | _Wrapper]) -> Copies:
    return {id(value.tensor): list(_pieces(value)) for value in values}


def _pieces(value: _Value | _Wrapper) -> Iterator[Tensor]:
    if isinstance(value, _Wrapper):
        for inner in value.values:
            yield from _pieces(inner)
    else:
        yield from pieces(value.copy)


_WALKED = ("_parameters", "_buffers", "_modules")


def _may_hold(value: Any) -> bool:
    return bool(value) if isinstance(value, dict | tuple) else isinstance(value, list | deque)


class _Containers:
    """Dicts, lists, sets and deques, with those inside of them, and what is in each.

    Attributes:
        tensors: the tensors in them.
    """

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._contents: dict[int, tuple[Any, Any]] = {}

    def add(self, values: Iterable[Any]) -> None:
        """Note these values as they are now, if they are containers."""
        for value in values:
            self._add(value)

    def _add(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, Mapping | list | tuple | set | deque):
            self._add_container(value)

    def _add_container(self, value: Any) -> None:
        if id(value) in self._contents:
            return
        if isinstance(value, dict | list | set | deque):
            self._contents[id(value)] = value, dict(value) if isinstance(value, dict) else [*value]
        if isinstance(value, UserDict):
            self._add(value.data)
        else:
            self.add(value.values() if isinstance(value, Mapping) else value)

    @contextmanager
    def put_back(self) -> Iterator[None]:
        """Give each container its content back at the end."""
        try:
            yield
        finally:
            for value, content in self._contents.values():
                if not _is_same(value, content):
                    value.clear()
                    (value.extend if isinstance(value, list | deque) else value.update)(content)


def _is_same(value: Any, content: Any) -> bool:
    """Whether a container still has the very same objects in it, in the same order."""
    if len(value) != len(content):
        return False
    if isinstance(value, dict):
        pairs = zip(value.items(), content.items(), strict=True)
        return all(a is c and b is d for (a, b), (c, d) in pairs)
    return all(a is b for a, b in zip(value, content, strict=True))
