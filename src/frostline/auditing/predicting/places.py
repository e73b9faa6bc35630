"""Which module a run is in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from frostline._names import named_modules


class Where:
    """The modules whose forward is running, the innermost last.

    Args:
        model: the root, for names.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(module): name for name, module in named_modules(model)}
        self._stack: list[nn.Module] = []
        self.outside = "the loss"

    @property
    def name(self) -> str:
        """The innermost module of the model in words, or what runs outside of all."""
        for module in reversed(self._stack):
            if id(module) in self._names:
                return self._names[id(module)] or type(module).__name__
        return self.outside

    @property
    def counts(self) -> bool:
        """Whether the innermost module is a norm with a counter of batches."""
        return bool(self._stack) and "num_batches_tracked" in self._stack[-1]._buffers

    def of(self, operation: str) -> str:
        """An operation and its place, in words."""
        return f"aten.{operation} in {self.name}"

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow every module's forward, by hooks that no module carries."""

        def enter(module: nn.Module, args: Any) -> None:
            self._stack.append(module)

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            # Past those that an exception left: a checkpoint stops recomputing by one.
            while self._stack and self._stack.pop() is not module:
                pass

        handles = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._stack.clear()
