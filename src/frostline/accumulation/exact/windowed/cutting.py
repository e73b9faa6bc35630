"""The graph of a microbatch in pieces: what it holds at a norm gets a new beginning there."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils import swap_tensors

from frostline.accumulation.exact.recomputing import Recomputation
from frostline.errors import AccumulationError
from frostline.lockstep.shelving import Shelf, Shelved, is_plain


@dataclass(eq=False, slots=True)
class Gradient:
    """A gradient that arrives in parts and waits on the shelf in between.

    Attributes:
        shelf: where it waits.
        fresh: all of this microbatch to which something was added since they were put aside.
        held: what has arrived.
    """

    shelf: Shelf
    fresh: list[Gradient]
    held: Tensor | Shelved | None = None

    def add(self, more: Tensor) -> None:
        """Another part of it."""
        before = self.take()
        self.held = more if before is None else before + more
        self.fresh.append(self)

    def put_aside(self) -> None:
        """Keep what has arrived on the shelf."""
        if isinstance(self.held, Tensor) and self.shelf.takes(self.held):
            self.held = self.shelf.put(self.held)

    def take(self) -> Tensor | None:
        """All of it, which is forgotten here."""
        held, self.held = self.held, None
        return held.load() if isinstance(held, Shelved) else held


@dataclass(eq=False, slots=True)
class Cut:
    """A tensor that a microbatch held while it waited.

    Attributes:
        edge: where the graph before goes on.
        gradient: of the tensor, from all pieces after.
        closed: the piece before has had its backward.
    """

    edge: GradientEdge
    gradient: Gradient
    closed: bool = False

    def add(self, gradient: Tensor) -> None:
        """A part of its gradient.

        Raises:
            AccumulationError: it is too late for that.
        """
        if self.closed:
            raise AccumulationError(
                "a tensor that one microbatch computed is used by another (something cached); "
                "their gradients cannot be told apart. Compute it in each, or pass offload=None"
            )
        self.gradient.add(gradient)


class Cutter:
    """Cuts the graph of one microbatch.

    Args:
        shelf: where gradients wait.
        recomputation: says whether the window's backward goes on.
        root: a scalar that requires a gradient, so that what begins anew has a graph.
        fresh: gets the gradients to which something is added.
    """

    def __init__(
        self,
        shelf: Shelf,
        recomputation: Recomputation,
        root: Tensor,
        fresh: list[Gradient],
    ) -> None:
        self._shelf, self._recomputation, self._root = shelf, recomputation, root
        self._fresh = fresh
        self._shared: list[tuple[Tensor, int]] = []

    def cut(self, tensors: list[Tensor]) -> list[Cut]:
        """Give each tensor that has a graph a new beginning, in place.

        The objects stay, so whatever refers to them in the suspended frames goes on with them.
        """
        self.refuse_writes()
        found = [tensor for tensor in tensors if _has_graph(tensor)]
        self._note_shared(found)
        # A view keeps a reference to its base, which can get another content only after it.
        found.sort(key=lambda tensor: not tensor._is_view())
        return [self._cut(tensor) for tensor in found]

    def _cut(self, tensor: Tensor) -> Cut:
        cut = Cut(get_gradient_edge(tensor), Gradient(self._shelf, self._fresh))
        # No view, and it shares the count of writes with the old one.
        memory = tensor.detach()
        anew: Tensor = _Begin.apply(  # type: ignore[no-untyped-call]
            cut, self._recomputation, [memory], self._root
        )
        vars(anew).update(vars(tensor))
        try:
            swap_tensors(tensor, anew)
        except RuntimeError as error:
            raise AccumulationError(
                f"a tensor {list(tensor.shape)} that a microbatch holds across a norm is held from "
                "outside of Python, too, so its graph cannot be cut there; pass offload=None"
            ) from error
        return cut

    def _note_shared(self, tensors: list[Tensor]) -> None:
        count = Counter(tensor.untyped_storage()._cdata for tensor in tensors)
        for tensor in tensors:
            if count[tensor.untyped_storage()._cdata] > 1:
                watch = tensor.detach()
                with _unsafe_preserve_version_counter(watch):
                    watch.set_()  # type: ignore[call-overload] # only the count is of interest
                self._shared.append((watch, watch._version))

    def refuse_writes(self) -> None:
        """Raise if one of several tensors on the same memory was written to since they were cut.

        Autograd no longer knows that they are views of each other.
        """
        if any(watch._version != version for watch, version in self._shared):
            raise AccumulationError(
                "a tensor that shares memory with another (a view) is written to in place after a "
                "norm, and both were made before it; pass offload=None, or write out of place"
            )
        self._shared = []


def _has_graph(tensor: Tensor) -> bool:
    grad_fn = tensor.grad_fn
    return is_plain(tensor) and grad_fn is not None and not isinstance(grad_fn, _BEGINNING)


class _Begin(torch.autograd.Function):
    """A tensor without a past; its gradient goes to a :class:`Cut`."""

    @staticmethod
    def forward(
        ctx: Any, cut: Cut, recomputation: Recomputation, memory: list[Tensor], root: Tensor
    ) -> Tensor:
        ctx.cut, ctx.recomputation = cut, recomputation
        return memory[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        ctx.recomputation.refuse_early()
        ctx.cut.add(gradients[0])
        return None, None, None, None


_BEGINNING: type = _Begin._backward_cls
