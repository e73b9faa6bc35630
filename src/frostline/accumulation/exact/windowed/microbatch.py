"""The graph of one microbatch as pieces between norms, and the backward of each piece."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from frostline.accumulation.exact.recomputing import Recomputation
from frostline.accumulation.exact.windowed.cutting import Cut, Cutter, Gradient
from frostline.accumulation.exact.windowed.outputs import JoinedCall
from frostline.lockstep.norm_calls import NormCall
from frostline.lockstep.normalising import Sums
from frostline.lockstep.shelving import Shelf


@dataclass(frozen=True, eq=False, slots=True)
class _Piece:
    """What the graph up to one norm call ends in."""

    call: JoinedCall
    cuts: list[Cut]


class Microbatch:
    """One microbatch of a window."""

    def __init__(self, shelf: Shelf, recomputation: Recomputation, root: Tensor) -> None:
        self._shelf = shelf
        self._fresh: list[Gradient] = []
        self._cutter = Cutter(shelf, recomputation, root, self._fresh)
        self._pieces: list[_Piece] = []

    @property
    def calls(self) -> list[JoinedCall]:
        """Its norm calls, in order."""
        return [piece.call for piece in self._pieces]

    def cut(self, call: NormCall, held: list[Tensor]) -> None:
        """It waits at a norm call: end the piece here."""
        joined = JoinedCall.of(call, self._shelf, self._fresh)
        self._pieces.append(_Piece(joined, self._cutter.cut(held)))

    def finish(self) -> None:
        """Its forward has come to the end."""
        self._cutter.refuse_writes()

    def backward(self, sums: Sums | None) -> None:
        """The last piece that is left.

        Args:
            sums: over all microbatches at the norm call in which it ends; None if no gradient
                has come to it.
        """
        piece = self._pieces.pop()
        ends = [(cut.edge, cut.gradient.take()) for cut in piece.cuts]
        if piece.call.edge is not None and sums is not None:
            ends.append((piece.call.edge, piece.call.input_gradient(sums)))
        _backward([(edge, gradient) for edge, gradient in ends if gradient is not None])
        for cut in piece.cuts:
            cut.closed = True
        self.put_aside()

    def put_aside(self) -> None:
        """Keep the gradients that have arrived on the shelf."""
        for gradient in self._fresh:
            gradient.put_aside()
        self._fresh.clear()


def _backward(ends: list[tuple[GradientEdge, Tensor]]) -> None:
    if ends:
        edges, gradients = zip(*ends, strict=True)
        torch.autograd.backward(edges, gradients)
