"""What a probe touches, put back: all of it at the end, and what runs can pass on after each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from frostline._names import named_tensors
from frostline._state import has_bytes, pieces, write_bits
from frostline.behaviours.untouched import untouched


@contextmanager
def put_back(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Everything, bit by bit; it takes the memory of the modules again."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for module in modules:
            stack.enter_context(untouched(module, None, values=True))
        yield


@contextmanager
def from_the_same_start(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Attributes, hooks, generators and buffers: what a forward leaves for the next one."""
    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(untouched(module, None, values=False))
        tensors = [entry for module in modules for entry in named_tensors(module)]
        state = [entry.tensor for entry in tensors if entry.kind != "parameter"]
        before = [(piece, piece.clone()) for t in state if has_bytes(t) for piece in pieces(t)]
        try:
            yield
        finally:
            for tensor, old in before:
                write_bits(tensor, old)
