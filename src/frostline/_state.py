"""Capture of everything that a run can touch, and its exact restoration.

Every feature that runs somebody's model does so inside :func:`restoring`, or keeps a
:class:`Snapshot` to come back to.
"""

from __future__ import annotations

import copy
import gc
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim import Optimizer


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors of one dtype and shape hold the same bytes (NaN included)."""
    if a.numel() == 0:
        return True
    flat = [t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1) for t in (a, b)]
    return torch.equal(*(t.view(torch.uint8) for t in flat))


def pieces(tensor: Tensor) -> list[Tensor]:
    """The tensors that hold the bytes on this rank; a wrapper subclass has several inside."""
    if hasattr(type(tensor), "__tensor_flatten__"):
        inner, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
        return [piece for name in inner for piece in pieces(getattr(tensor, name))]
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    return [tensor.detach()]


def write_bits(tensor: Tensor, old: Tensor) -> None:
    """Put the bytes of ``old`` into the memory of ``tensor``, so that every alias sees them.

    Nothing is written where they are equal, and no version moves: a graph that was built before
    can still go backward.

    Args:
        tensor: a tensor of any class.
        old: one with the same class, dtype and shape.
    """
    for now, was in zip(pieces(tensor), pieces(old), strict=True):
        if _is_plain(now) and same_bits(now, was):
            continue
        with torch.inference_mode(now.is_inference()), torch.no_grad(), _version_kept(now):
            _once(now, now).copy_(_once(was, now))


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized


def _once(tensor: Tensor, like: Tensor) -> Tensor:
    """Each element once, if ``like`` is expanded: torch refuses to write to one place twice."""
    steps = like.stride() if _is_plain(like) else ()
    for dim, step in enumerate(steps):
        if step == 0 and like.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor


def _version_kept(tensor: Tensor) -> AbstractContextManager[None]:
    # Tensors made under inference mode have no version.
    return nullcontext() if tensor.is_inference() else _unsafe_preserve_version_counter(tensor)


@dataclass(eq=False, repr=False)
class _ModuleState:
    """A module's ``__dict__``, and the contents of the containers in it (hooks, parameters)."""

    module: nn.Module
    attributes: dict[str, Any]
    contents: dict[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> _ModuleState:
        attributes = dict(vars(module))
        contents = {k: copy.copy(v) for k, v in attributes.items() if isinstance(v, dict | set)}
        return cls(module, attributes, contents)

    def restore(self) -> None:
        # Writing to __dict__ goes past every setter: a held module must not count this as a call.
        own = vars(self.module)
        own.clear()
        own.update(self.attributes)
        for name, content in self.contents.items():
            own[name].clear()
            own[name].update(content)

    @property
    def plain_tensors(self) -> list[Tensor]:
        """Tensors that are neither parameters nor buffers."""
        return [value for value in self.attributes.values() if isinstance(value, Tensor)]


def _value_of(tensor: Tensor) -> _Value | _Wrapper:
    if not hasattr(type(tensor), "__tensor_flatten__"):
        return _Value.of(tensor)
    names, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    inner = {name: getattr(tensor, name) for name in names}
    return _Wrapper(tensor, inner, [_value_of(part) for part in inner.values()])


@dataclass(eq=False, repr=False)
class _Wrapper:
    """A wrapper subclass, the tensors in it by attribute, and what was in them."""

    tensor: Tensor
    inner: dict[str, Tensor]
    values: list[_Value | _Wrapper]

    def restore(self) -> None:
        for name, part in self.inner.items():
            if getattr(self.tensor, name) is not part:
                setattr(self.tensor, name, part)
        for value in self.values:
            value.restore()


@dataclass(eq=False, repr=False)
class _Value:
    """A tensor, the memory that it had, and what was in it.

    Attributes:
        home: another view of that memory, which stays when ``tensor`` is given other memory.
        nbytes: size of the memory, which can be freed under both.
    """

    tensor: Tensor
    home: Tensor
    copy: Tensor
    nbytes: int

    @classmethod
    def of(cls, tensor: Tensor) -> _Value:
        home = tensor.detach()
        nbytes = home.untyped_storage().nbytes() if _is_plain(home) else 0
        return cls(tensor, home, home.clone(), nbytes)

    def restore(self) -> None:
        if self.nbytes and self.home.untyped_storage().nbytes() < self.nbytes:
            self.home.untyped_storage().resize_(self.nbytes)
        if not _is_same_view(self.tensor, self.home):
            self.tensor.data = self.home
        write_bits(self.home, self.copy)


def _is_same_view(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one and the same window on one memory."""
    return _is_plain(a) and _is_plain(b) and _window(a) == _window(b)


def _window(tensor: Tensor) -> tuple[Any, ...]:
    place = (tensor.untyped_storage()._cdata, tensor.storage_offset())
    return (*place, tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), tensor.is_neg())


def has_bytes(tensor: Tensor) -> bool:
    """Whether there is memory behind it: neither meta nor lazy."""
    return not tensor.is_meta and not isinstance(tensor, UninitializedTensorMixin)


@dataclass(eq=False, repr=False)
class _Leaf:
    """What autograd keeps with a tensor."""

    tensor: Tensor
    grad: Tensor | None
    requires_grad: bool

    def restore(self) -> None:
        self.tensor.grad = self.grad
        if self.tensor.requires_grad is not self.requires_grad:
            self.tensor.requires_grad_(self.requires_grad)


class _Tensors:
    """Tensors with their flags and gradients, and with ``values`` all their bytes."""

    def __init__(self, tensors: Iterable[Tensor], *, values: bool) -> None:
        found = list({id(tensor): tensor for tensor in tensors}.values())
        self.leaves = [_Leaf(t, t.grad, t.requires_grad) for t in found if t.is_leaf]
        grads = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
        kept = [t for t in (*found, *grads) if has_bytes(t)] if values else []
        self._values = [_value_of(tensor) for tensor in kept]

    def restore(self) -> None:
        # Bytes first: a gradient is refused while its tensor has another dtype or shape.
        for value in self._values:
            value.restore()
        for leaf in self.leaves:
            leaf.restore()


@dataclass(eq=False, repr=False)
class _Rng:
    """The generators of torch (CPU and those devices that are in use), Python and numpy."""

    cpu: Tensor
    cuda: list[Tensor] | None
    python: Any
    numpy: Any

    @classmethod
    def now(cls) -> _Rng:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        numpy = sys.modules.get("numpy")
        return cls(
            torch.get_rng_state(),
            cuda,
            random.getstate(),
            numpy.random.get_state() if numpy is not None else None,
        )

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state_all(self.cuda)
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)


class _Entries:
    """A dict of an optimizer: tensors in it as objects and bytes, all else by deep copies."""

    def __init__(self, entries: dict[Any, Any], parameters: dict[int, Any]) -> None:
        self._entries, self._parameters = entries, parameters
        self._kept = {key: self._copy(value) for key, value in entries.items()}
        tensors = [value for value in entries.values() if isinstance(value, Tensor)]
        self._values = [_value_of(t) for t in tensors if id(t) not in parameters]

    def _copy(self, value: Any) -> Any:
        # The parameters in it stay the same objects.
        return value if isinstance(value, Tensor) else copy.deepcopy(value, dict(self._parameters))

    def restore(self) -> dict[Any, Any]:
        self._entries.clear()
        self._entries.update({key: self._copy(value) for key, value in self._kept.items()})
        for value in self._values:
            value.restore()
        return self._entries


class _OptimizerState:
    """State and groups of an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._state, self._groups = optimizer.state, optimizer.param_groups
        self.parameters = [p for group in self._groups for p in group["params"]]
        known = {id(p): p for p in (*self.parameters, *self._state)}
        own = {p: kept for p, kept in self._state.items() if isinstance(kept, dict)}
        self._kept_state = {p: _Entries(kept, known) for p, kept in own.items()}
        # Some optimizers keep things of their own there, under names.
        self._others = _Entries({k: v for k, v in self._state.items() if k not in own}, known)
        self._kept_groups = [_Entries(group, known) for group in self._groups]

    def restore(self) -> None:
        # load_state_dict puts other containers there, and schedulers may hold the first ones.
        if self._optimizer.state is not self._state:
            self._optimizer.state = self._state
        if self._optimizer.param_groups is not self._groups:
            self._optimizer.param_groups = self._groups
        self._state.clear()
        self._state.update({p: kept.restore() for p, kept in self._kept_state.items()})
        self._state.update(self._others.restore())
        self._groups[:] = [kept.restore() for kept in self._kept_groups]


class Snapshot:
    """A model, optimizers and random generators at one moment, to come back to at any time.

    Modes, hooks and other attributes of modules; parameters, buffers and plain tensor attributes,
    as objects and as bytes, also where they were given other memory; gradients and flags; state and
    groups of optimizers; the random generators of torch, Python and numpy.

    Learning rate schedulers, gradient scalers and data loaders are not in it: they go on from where
    they are. Neither is grad mode, which belongs to the code that calls.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> before, snapshot = net.weight.detach().clone(), Snapshot.take(net)
        >>> net.weight.data = torch.zeros(1, 2)
        >>> snapshot.restore()
        >>> torch.equal(net.weight, before)
        True
    """

    def __init__(self, model: nn.Module, *, values: bool) -> None:
        self._values = values
        self._modules = [_ModuleState.of(module) for module in model.modules()]
        plain = [tensor for module in self._modules for tensor in module.plain_tensors]
        self._tensors = [_Tensors([*model.parameters(), *model.buffers(), *plain], values=values)]
        self._optimizers: list[_OptimizerState] = []
        self._rng = _Rng.now()

    @classmethod
    def take(
        cls, model: nn.Module, optimizers: Iterable[Optimizer] = (), *, values: bool = True
    ) -> Snapshot:
        """Capture what is there now.

        Args:
            model: its modules and tensors.
            optimizers: their state, their groups, and tensors of theirs that are not the model's.
            values: whether to copy the bytes of tensors, which takes the model's memory again.
        """
        snapshot = cls(model, values=values)
        for optimizer in optimizers:
            snapshot.add(optimizer)
        return snapshot

    def add(self, optimizer: Optimizer) -> None:
        """Capture one more optimizer, as it is now."""
        state = _OptimizerState(optimizer)
        known = {id(leaf.tensor) for tensors in self._tensors for leaf in tensors.leaves}
        others = [p for p in state.parameters if id(p) not in known]
        self._tensors.append(_Tensors(others, values=self._values))
        self._optimizers.append(state)

    def restore(self) -> None:
        """Bring all of it back; can be called again."""
        self._rng.restore()
        for module in self._modules:
            module.restore()
        for tensors in self._tensors:
            tensors.restore()
        for optimizer in self._optimizers:
            optimizer.restore()


@contextmanager
def collector_paused() -> Iterator[None]:
    """Keep the garbage collector away from a stretch that makes many objects and keeps most.

    A collection walks the whole heap, torch's half million objects included, and finds nothing.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def collecting_young_only() -> Iterator[None]:
    """Let the garbage collector look at what is made inside, and not at torch's objects.

    For long stretches in which somebody's model runs, whose own cycles are to be collected.
    """
    if gc.get_freeze_count():  # somebody has frozen objects, which unfreeze would bring back
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def restoring(
    model: nn.Module, *, values: bool = True, optimizer: Optimizer | None = None
) -> Iterator[None]:
    """Leave ``model``, its gradients, every random generator and ``optimizer`` as they were.

    Restored also after an exception: module attributes (modes, momentum, hooks, parameter and
    buffer objects), ``.grad`` objects, grad mode, random generators; with ``values`` (a copy of
    the model's memory) also the bytes of parameters, buffers and gradients. See :class:`Snapshot`.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with restoring(net):
        ...     _ = net.train()(torch.randn(4, 2))
        >>> net.num_batches_tracked.item()
        0
    """
    optimizers = () if optimizer is None else (optimizer,)
    snapshot, grad_mode = Snapshot.take(model, optimizers, values=values), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad_mode)
        snapshot.restore()
