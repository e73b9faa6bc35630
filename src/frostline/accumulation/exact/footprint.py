"""What one microbatch's forward keeps for backward, measured by running it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from frostline._batches import tensors_in
from frostline.accumulation.exact.blocks import blocks
from frostline.accumulation.exact.forwards import Forwards
from frostline.accumulation.exact.unseen import unseen
from frostline.accumulation.undoing import all_or_nothing
from frostline.lockstep.norm_calls import NormCall, NormCalls
from frostline.lockstep.shelving import is_plain


@dataclass(frozen=True)
class Footprint:
    """Bytes of one microbatch, without parameters, buffers and the batch itself.

    Attributes:
        saved: what autograd saves, each storage once.
        largest: the largest of these.
        outside: what is saved outside of the model's blocks.
        entries: what goes into the blocks.
        block: the most that one block saves.
        norm_calls: norms that looked across the batch.
    """

    saved: int
    largest: int
    outside: int
    entries: int
    block: int
    norm_calls: int

    @property
    def checkpointed(self) -> int | None:
        """What stays in memory at most if blocks are run again; None without blocks."""
        return self.outside + self.entries + self.block if self.entries else None


def footprint(forwards: Forwards, number: int) -> Footprint:
    """Run the forward of one microbatch; everything is put back."""
    meter = _Meter(forwards)
    counting = _Counting(*forwards.models)
    with all_or_nothing(*forwards.models) as before, unseen(forwards.model):
        try:
            with meter.blocks(), saved_tensors_hooks(meter.pack, lambda t: t), counting:
                forwards.run(number)
        finally:
            forwards.losses.clear()
            before.restore()
    return meter.footprint(counting.calls)


class _Counting(NormCalls):
    calls = 0

    def batch_norm(self, call: NormCall) -> Tensor:
        self.calls += 1
        if call.input.numel() > call.input.shape[1]:
            return super().batch_norm(call)
        # One value for each channel: the other microbatches make it more, torch alone refuses.
        still = torch.zeros_like(call.input[0].flatten())
        return F.batch_norm(call.input, still, still + 1, call.weight, call.bias)


class _Meter:
    """Which storages are saved in which block."""

    def __init__(self, forwards: Forwards) -> None:
        self._model = forwards.model
        self._resident = {
            tensor.untyped_storage()._cdata for tensor in forwards.resident() if is_plain(tensor)
        }
        self._kept: dict[int, tuple[Tensor, nn.Module | None]] = {}
        self._entered: dict[int, Tensor] = {}
        self._block: nn.Module | None = None

    def pack(self, tensor: Tensor) -> Tensor:
        self._note(tensor, self._kept, self._block)
        return tensor

    def _note(self, tensor: Tensor, into: dict[int, Any], *more: Any) -> None:
        if is_plain(tensor) and tensor.untyped_storage()._cdata not in self._resident:
            # Referred to, so that no other storage gets its address.
            entry = (tensor, *more) if more else tensor
            into.setdefault(tensor.untyped_storage()._cdata, entry)

    @contextmanager
    def blocks(self) -> Iterator[None]:
        with ExitStack() as stack:
            for block in blocks(self._model):
                before = block.register_forward_pre_hook(self._enter, with_kwargs=True)
                after = block.register_forward_hook(self._leave)
                stack.callback(before.remove)
                stack.callback(after.remove)
            yield

    def _enter(self, block: nn.Module, args: Any, named: Any) -> None:
        self._block = block
        for tensor in tensors_in((args, named)):
            self._note(tensor, self._entered)

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        self._block = None

    def footprint(self, norm_calls: int) -> Footprint:
        sizes = [(_bytes(tensor), block) for tensor, block in self._kept.values()]
        by_block: dict[nn.Module | None, int] = {}
        for size, block in sizes:
            by_block[block] = by_block.get(block, 0) + size
        outside = by_block.pop(None, 0)
        return Footprint(
            saved=sum(size for size, _ in sizes),
            largest=max((size for size, _ in sizes), default=0),
            outside=outside,
            entries=sum(map(_bytes, self._entered.values())),
            block=max(by_block.values(), default=0),
            norm_calls=norm_calls,
        )


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
