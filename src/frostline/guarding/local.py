"""What of a tensor lives in this process: the guard never communicates to read one."""

from __future__ import annotations

import sys

from torch import Tensor
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from frostline import _content
from frostline.errors import UnsupportedTensor


def of(tensor: Tensor) -> Tensor:
    """The local shard of a DTensor; any other tensor is local as it is."""
    return tensor._local_tensor if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def is_shard(tensor: Tensor) -> bool:
    """Whether other ranks hold other parts of it."""
    # Whoever holds a DTensor has imported the module; importing it here would cost everyone else.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def read(name: str, tensor: Tensor) -> _content.Content:
    """The content of the local part.

    Raises:
        UnsupportedTensor: the content cannot be read.
    """
    return _content.read(name, of(tensor))


def refuse_lazy(name: str, tensor: Tensor) -> None:
    """Raise for what has no content before a first forward.

    Raises:
        UnsupportedTensor: the tensor belongs to a lazy module.
    """
    if isinstance(tensor, UninitializedTensorMixin):
        raise UnsupportedTensor(
            f"{name}: not initialised yet (a lazy module). Run one batch through the model first."
        )
