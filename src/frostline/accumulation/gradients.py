"""Gradients of before, set aside while a window makes its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@contextmanager
def set_aside(model: nn.Module, others: Iterable[Tensor] = ()) -> Iterator[None]:
    """Let the gradients of a window add up by themselves, and add them to those of before at last.

    After success each ``.grad`` object that was there holds old + new, as after ``backward()``;
    after an exception the objects of before are back, and nothing has written to them. They are
    kept as they are and not copied, but under DistributedDataParallel with gradients that are views
    of its buckets, whose memory the window uses.

    A hook that takes a gradient away (an optimizer that steps in backward) sees that of the window
    alone, and what was there before stays.

    Args:
        model: all its parameters, each once.
        others: further leaves that the loss depends on.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> net.weight.grad = old = torch.ones(1, 2)
        >>> with set_aside(net):
        ...     net(torch.tensor([[1.0, 2.0]])).sum().backward()
        >>> net.weight.grad is old, old
        (True, tensor([[2., 3.]]))
    """
    in_buckets = getattr(model, "gradient_as_bucket_view", False)
    leaves = {id(tensor): tensor for tensor in (*model.parameters(), *others) if tensor.is_leaf}
    kept = [_Kept.of(tensor, copied=in_buckets) for tensor in leaves.values()]
    try:
        yield
    except BaseException:
        for entry in kept:
            entry.restore()
        raise
    for entry in kept:
        entry.add()


@dataclass(eq=False)
class _Kept:
    """A leaf, its gradient of before, and what was in it if others may write there."""

    leaf: Tensor
    grad: Tensor | None
    copy: Tensor | None

    @classmethod
    def of(cls, leaf: Tensor, *, copied: bool) -> _Kept:
        grad, leaf.grad = leaf.grad, None
        return cls(leaf, grad, grad.clone() if copied and grad is not None else None)

    def restore(self) -> None:
        self.leaf.grad = self.grad
        self._write_copy()

    def add(self) -> None:
        new = self.leaf.grad
        if self.grad is None:
            return
        if self.copy is not None and new is not None:
            new = new.clone()
        self.restore()
        if new is not None:
            self.leaf.grad = _sum(self.grad, new)

    def _write_copy(self) -> None:
        if self.copy is not None and self.grad is not None:
            with torch.no_grad():
                self.grad.copy_(self.copy)


def _sum(old: Tensor, new: Tensor) -> Tensor:
    """Old + new, in the old object wherever that can hold the sum."""
    with torch.no_grad():
        if old.is_sparse and not new.is_sparse:
            return new + old
        return old.add_(new)
