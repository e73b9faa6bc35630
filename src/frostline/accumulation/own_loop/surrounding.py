"""Calls of modules inside a context, which is left in whatever way a call ends.

Forward hooks would not do: torch runs no hook after KeyboardInterrupt, which every notebook knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Context = Callable[[], AbstractContextManager[None]]

# torch's own place for what is called in a module's stead (Module.compile): in no state dict, and
# left out of copies and pickles.
_PLACE = "_compiled_call_impl"


@contextmanager
def surrounding(modules: Iterable[nn.Module], context: Context) -> Iterator[None]:
    """Every call of these modules happens inside ``context()``.

    Example:
        >>> @contextmanager
        ... def told():
        ...     print("in")
        ...     yield
        ...     print("out")
        >>> net = nn.Identity()
        >>> with surrounding([net], told):
        ...     net(1)
        in
        out
        1
    """
    with ExitStack() as stack:
        for module in modules:
            stack.callback(_Call.install(module, context).remove)
        yield


@dataclass(eq=False)
class _Call:
    """Stands where a module is called."""

    module: nn.Module
    context: Context
    earlier: Callable[..., Any] | None

    @classmethod
    def install(cls, module: nn.Module, context: Context) -> _Call:
        call = cls(module, context, vars(module).get(_PLACE))
        vars(module)[_PLACE] = call
        return call

    def remove(self) -> None:
        own = vars(self.module)
        if own.get(_PLACE) is not self:
            return  # somebody compiled the module meanwhile, or wraps this
        own.pop(_PLACE)
        if self.earlier is not None:
            own[_PLACE] = self.earlier

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = self.earlier or self.module._call_impl
        if torch.compiler.is_compiling():
            return call(*args, **kwargs)
        with self.context():
            return call(*args, **kwargs)

    def __reduce__(self) -> Any:
        # A copy that takes this along is called as if it were not there.
        return type(None), ()
