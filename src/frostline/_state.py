"""Capture of everything that a run can touch, and its exact restoration.

Every feature that runs somebody's model does so inside :func:`restoring`.
"""

from __future__ import annotations

import copy
import gc
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.optim import Optimizer


@dataclass(eq=False, repr=False)
class _ModuleState:
    """A module's ``__dict__``, and the contents of the dicts in it (hooks, parameters, buffers)."""

    module: nn.Module
    attributes: dict[str, Any]
    contents: dict[str, dict[Any, Any]]

    @classmethod
    def of(cls, module: nn.Module) -> _ModuleState:
        attributes = dict(vars(module))
        contents = {k: copy.copy(v) for k, v in attributes.items() if isinstance(v, dict)}
        return cls(module, attributes, contents)

    def restore(self) -> None:
        # Writing to __dict__ goes past every setter: a held module must not count this as a call.
        own = vars(self.module)
        own.clear()
        own.update(self.attributes)
        for name, content in self.contents.items():
            own[name].clear()
            own[name].update(content)


@dataclass(eq=False, repr=False)
class _Value:
    """A tensor, its bytes and its version counter."""

    tensor: Tensor
    copy: Tensor

    def restore(self) -> None:
        if same_bits(self.tensor, self.copy):
            return
        with (
            torch.no_grad(),
            _unsafe_preserve_version_counter(self.tensor),
        ):
            self.tensor.copy_(self.copy)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two dense tensors of one dtype and shape hold the same bytes (NaN included)."""
    if a.numel() == 0:
        return True
    flat = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (a, b)]
    return torch.equal(*flat)


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


@dataclass(eq=False, repr=False)
class _OptimizerState:
    optimizer: Optimizer
    state: dict[Any, Any]
    groups: list[dict[str, Any]]

    @classmethod
    def of(cls, optimizer: Optimizer) -> _OptimizerState:
        # The keys are parameters and must stay the same objects; only the values are copied.
        state = {p: copy.deepcopy(values) for p, values in optimizer.state.items()}
        groups = [{k: _shallow(v) for k, v in group.items()} for group in optimizer.param_groups]
        return cls(optimizer, state, groups)

    def restore(self) -> None:
        self.optimizer.state.clear()
        self.optimizer.state.update(self.state)
        live = self.optimizer.param_groups
        del live[len(self.groups) :]
        for group, saved in zip(live, self.groups, strict=True):
            group.clear()
            group.update(saved)


def _shallow(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


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
def restoring(
    model: nn.Module, *, values: bool = True, optimizer: Optimizer | None = None
) -> Iterator[None]:
    """Leave ``model``, its gradients, every random generator and ``optimizer`` as they were.

    Restored also after an exception: module attributes (modes, momentum, hooks, parameter and
    buffer objects), ``.grad`` objects, grad mode, random generators; with ``values`` (a copy of
    the model's memory) also the bytes of parameters, buffers and gradients.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with restoring(net):
        ...     _ = net.train()(torch.randn(4, 2))
        >>> net.num_batches_tracked.item()
        0
    """
    modules = [_ModuleState.of(module) for module in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    grads = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    kept = [*tensors, *(grad for _, grad, _ in grads if grad is not None)] if values else []
    copies = [_Value(t, t.detach().clone()) for t in kept]
    optimizer_state = _OptimizerState.of(optimizer) if optimizer is not None else None
    rng, grad_mode = _Rng.now(), torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad_mode)
        rng.restore()
        for module in modules:
            module.restore()
        for parameter, grad, requires_grad in grads:
            parameter.grad = grad
            parameter.requires_grad_(requires_grad)
        for value in copies:
            value.restore()
        if optimizer_state is not None:
            optimizer_state.restore()
