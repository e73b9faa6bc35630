"""Which memory the operations of a run made, and how much of it is still alive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from frostline._batches import tensors_in
from frostline._state import pieces

# Their outputs hold a workspace for backward whose size only the library knows.
_OPAQUE = frozenset({"mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn"})


class Unpredictable(Exception):
    """An operation whose memory is known only when it has run."""


class Births(TorchDispatchMode):
    """Notes every storage that an operation makes, without keeping it alive.

    Args:
        fake: the mode below, of a run without memory; None for a real one.

    Raises:
        Unpredictable: where a run without memory tells a wrong size.
    """

    def __init__(self, fake: FakeTensorMode | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake = fake
        self._born: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        schema = func._schema
        kwargs = kwargs or {}
        if self._fake is not None:
            if schema.name.partition("::")[2] in _OPAQUE:
                raise Unpredictable(schema.name)
            args, kwargs = tree_map_only(Tensor, self._without_memory, (args, kwargs))
        result = func(*args, **kwargs)
        # Views, and results that are an argument written in place, bring no memory of their own.
        if all(returned.alias_info is None for returned in schema.returns):
            for tensor in tensors_in(result):
                self._note(tensor)
        return result

    def alive(self) -> int:
        """Bytes of what was made and is still used by somebody."""
        return sum(map(_alive, self._born.values()))

    def _without_memory(self, tensor: Tensor) -> Tensor:
        # Of real arguments alone, fake mode computes some operations for real, in place too.
        if self._fake is None or isinstance(tensor, FakeTensor):
            return tensor
        return self._fake.from_tensor(tensor)

    def _note(self, tensor: Tensor) -> None:
        plain = tensor.layout is torch.strided and not hasattr(type(tensor), "__tensor_flatten__")
        for piece in [tensor] if plain else pieces(tensor):
            storage = piece.untyped_storage()
            # The reference keeps this address from being used again.
            if storage._cdata not in self._born:
                self._born[storage._cdata] = StorageWeakRef(storage)


def _alive(reference: StorageWeakRef) -> int:
    storage: Any = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
    return storage.nbytes() if storage is not None else 0
