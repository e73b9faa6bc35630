"""The output of a norm in one microbatch, as the beginning of a piece of its graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import GradientEdge, get_gradient_edge

from frostline.accumulation.exact.recomputing import Recomputation
from frostline.accumulation.exact.windowed.cutting import Gradient
from frostline.lockstep.norm_calls import NormCall
from frostline.lockstep.normalising import Statistics, Sums, input_gradient, normalise
from frostline.lockstep.shelving import Shelf, Shelved


@dataclass(eq=False, slots=True)
class JoinedCall:
    """One norm call of one microbatch.

    Attributes:
        input: on the shelf, or in memory if it is small.
        weight: without a graph.
        edge: where the graph before goes on; None if the input needs no gradient.
        gradient: of the output.
        sums: what this microbatch gives to the sums over all; None until something arrived.
    """

    input: Tensor | Shelved
    weight: Tensor | None
    edge: GradientEdge | None
    gradient: Gradient
    sums: Sums | None = None
    statistics: Statistics | None = None

    @classmethod
    def of(cls, call: NormCall, shelf: Shelf, fresh: list[Gradient]) -> JoinedCall:
        """What backward needs of a call; before the graph is cut."""
        x = call.input
        kept = shelf.put(x) if shelf.takes(x) else x.detach().clone()  # it may be written to
        weight = None if call.weight is None else call.weight.detach()
        edge = get_gradient_edge(x) if x.requires_grad and call.grad else None
        return cls(kept, weight, edge, Gradient(shelf, fresh))

    def load(self) -> Tensor:
        """The input."""
        return self.input.load() if isinstance(self.input, Shelved) else self.input

    def receive(self, dy: Tensor) -> Sums:
        """A gradient of the output; gives the gradients of bias and weight."""
        assert self.statistics is not None  # noqa: S101
        sums = Sums.of(dy, self.load(), self.statistics)
        self.sums = sums if self.sums is None else self.sums + sums
        if self.edge is not None:
            self.gradient.add(dy)
        return sums

    def input_gradient(self, sums: Sums) -> Tensor:
        """The gradient of the input, with the sums of all microbatches."""
        assert self.statistics is not None  # noqa: S101
        x, dy = self.load(), self.gradient.take()
        dy = torch.zeros_like(x) if dy is None else dy
        return input_gradient(dy, x, self.weight, self.statistics, sums)


def output(
    call: NormCall,
    joined: JoinedCall,
    statistics: Statistics,
    recomputation: Recomputation,
    root: Tensor,
) -> Tensor:
    """What the norm call returns to its microbatch; its input is in memory again."""
    joined.statistics = statistics
    learns = [t is not None and t.requires_grad for t in (call.input, call.weight, call.bias)]
    if not call.grad or not any(learns):
        return normalise(call.input, call.weight, call.bias, statistics)
    found: Tensor = _Output.apply(  # type: ignore[no-untyped-call]
        joined, recomputation, call.input.detach(), call.weight, call.bias, root
    )
    return found


class _Output(torch.autograd.Function):
    """A normalised tensor; what leads to the input of the norm is another piece."""

    @staticmethod
    def forward(
        ctx: Any,
        joined: JoinedCall,
        recomputation: Recomputation,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        root: Tensor,
    ) -> Tensor:
        ctx.joined, ctx.recomputation = joined, recomputation
        ctx.dtypes = [None if t is None else t.dtype for t in (weight, bias)]
        assert joined.statistics is not None  # noqa: S101
        return normalise(x, weight, bias, joined.statistics)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
        ctx.recomputation.refuse_early()
        sums = ctx.joined.receive(dy)
        vectors = [
            vector.to(dtype) if dtype is not None and needed else None
            for vector, dtype, needed in zip(
                (sums.dy_x, sums.dy), ctx.dtypes, ctx.needs_input_grad[3:5], strict=True
            )
        ]
        return (None, None, None, *vectors, None)
