"""The dispatch witness: every operator that may write to watched memory, seen as it runs."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Witness = Callable[[list[str], str, bool], None]
"""Called with the names an operator may write, its name, and whether it has run yet."""

# Namespaces whose schemas declare every write, BatchNorm aside. Any other operator may lie.
_HONEST = ("aten::", "prims::", "prim::")


class Ranges:
    """Byte ranges of the watched memory, to be asked which of them a tensor overlaps.

    Args:
        ranges: start, end and full name of each, sorted by start.
    """

    def __init__(self, ranges: Sequence[tuple[int, int, str]]) -> None:
        self._ranges = list(ranges)
        self._starts = [start for start, *_ in self._ranges]
        # Ranges may nest: below the last one that begins early enough, how far does any reach?
        self._reach = list(accumulate((end for _, end, _ in self._ranges), max))

    def touched(self, tensor: Tensor) -> Iterator[str]:
        """The names whose range the tensor's elements, first to last, overlap."""
        low, high = extent(tensor)
        number = bisect_left(self._starts, high) - 1
        while low < high and number >= 0 and self._reach[number] > low:
            _, end, name = self._ranges[number]
            if end > low:
                yield name
            number -= 1


def extent(tensor: Tensor) -> tuple[int, int]:
    """First and last address, exclusive, of what a tensor's elements use; (0, 0) without memory."""
    try:
        start = tensor.const_data_ptr()  # type: ignore[attr-defined]
        last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    except (RuntimeError, NotImplementedError):  # sparse, fake and other tensors without storage
        return 0, 0
    if start == 0 or tensor.numel() == 0:
        return 0, 0
    return start, start + (last + 1) * tensor.element_size()


class WriteDispatch(TorchDispatchMode):
    """Tells a witness of every operator that may write to watched memory, before and after it.

    It goes to the bottom of the mode stack, below the modes that are there: whoever entered one
    above leaves it as usual, and in whatever order. It is per thread; autograd's device threads
    inherit it, other threads do not.

    Args:
        ranges: the watched memory.
        witness: whom to tell.
    """

    # Without this, `cond`, `flex_attention` and Triton kernels would raise.
    supports_higher_order_operators = True

    def __init__(self, ranges: Ranges, witness: Witness) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ranges = ranges
        self.on = False
        self._witness = witness
        self._process = os.getpid()
        self._entered = False
        self._writes: dict[Any, list[tuple[int, str]] | None] = {}

    def enter(self) -> None:
        """Go to the bottom of this thread's stack, and begin."""
        self.leave()
        above = _take_all()
        torch._C._push_on_torch_dispatch_stack(self)
        _put_back(above)
        self.on = self._entered = True

    def leave(self) -> None:
        """End, and go from this thread's stack if it is there.

        While an operator runs below this mode, or from another thread, it is not: then it stays,
        does nothing, and goes with the next call that finds it.
        """
        self.on = False
        if self._entered:
            modes = _take_all()
            _put_back([mode for mode in modes if mode is not self])
            self._entered = all(mode is not self for mode in modes)

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Yes: otherwise code met below this mode would be marked as never to be compiled."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator; tell the witness if it may write to watched memory."""
        kwargs = kwargs or {}
        if any(_unwraps(kind) for kind in types):
            return NotImplemented  # what it holds comes by here afterwards
        names = self._touched(func, args, kwargs)
        if not names:
            return func(*args, **kwargs)
        operation = name_of(func)
        self._witness(names, operation, False)
        try:
            return func(*args, **kwargs)
        finally:
            self._witness(names, operation, True)

    def _touched(self, func: Any, args: Any, kwargs: dict[str, Any]) -> list[str]:
        if not self.on or os.getpid() != self._process:
            return []
        tensors = list(self._may_write(func, args, kwargs))
        names = dict.fromkeys(name for tensor in tensors for name in self.ranges.touched(tensor))
        if not names or not _spares_statistics(func, args, kwargs):
            return list(names)
        return []

    def _may_write(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Iterable[Tensor]:
        if func not in self._writes:
            self._writes[func] = _writes_of(func)
        writes = self._writes[func]
        values = (
            (args, kwargs)
            if writes is None
            else [args[i] if i < len(args) else kwargs.get(name) for i, name in writes]
        )
        return (value for value in tree_leaves(values) if isinstance(value, Tensor))


def _unwraps(kind: type) -> bool:
    """Whether a subclass of Tensor runs operators on what it holds, as DTensor does."""
    own = getattr(kind, "__torch_dispatch__", None)
    # These two have no memory, and are run by their own modes, which are below all others.
    without_memory = issubclass(kind, (FakeTensor, FunctionalTensor))
    return own is not torch._C._disabled_torch_dispatch_impl and not without_memory


def _writes_of(func: Any) -> list[tuple[int, str]] | None:
    """The arguments that may be written; None if the schema cannot be trusted to say which."""
    schema = getattr(func, "_schema", None)
    if schema is None or not schema.name.startswith(_HONEST):
        return None
    # It knows the undeclared write of BatchNorm to its statistics too.
    info = torch._C._SchemaInfo(schema)
    return [(i, a.name) for i, a in enumerate(schema.arguments) if info.is_mutable(a.name)]


def _spares_statistics(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether this call writes nothing, by its arguments: BatchNorm in eval mode."""
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable or not schema.name.startswith(_HONEST):
        return False
    info = torch._C._SchemaInfo(schema)
    for i, argument in enumerate(schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        if isinstance(value, bool):
            info.add_argument_value(argument.name, value)
    return not info.is_mutable()


def name_of(func: Any) -> str:
    """``aten.add_``: the operator without its overload."""
    schema = getattr(func, "_schema", None)
    return str(func) if schema is None else str(schema.name).replace("::", ".")


def _take_all() -> list[TorchDispatchMode]:
    size = torch._C._len_torch_dispatch_stack()
    return [torch._C._pop_torch_dispatch_stack(None) for _ in range(size)]


def _put_back(modes: list[TorchDispatchMode]) -> None:
    for mode in reversed(modes):
        torch._C._push_on_torch_dispatch_stack(mode)
