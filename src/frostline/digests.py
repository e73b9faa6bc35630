"""The digest of a tensor: BLAKE3 over a canonical header and the logical bytes.

Cryptographic and the same everywhere: on the CPU and on a GPU, in a live model and in a file. The
format is specified in docs/formats/manifest-v1.md. For the cheap comparison during training there
are checksums.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from frostline import _content

ALGORITHM = "blake3"
PREFIX = b"frostline/tensor/1\n"

_PROCESS = os.getpid()


def digest_tensor(name: str, tensor: Tensor) -> str:
    """Digest the content of a tensor: dtype, shape, and bytes in logical order.

    The name does not enter, so that equal content is recognised under another name; a manifest
    binds names to digests. Strides, device, `requires_grad` and Parameter or Tensor do not enter.

    Args:
        name: the full name of the tensor, for messages.
        tensor: any tensor that has bytes; wrapper subclasses are read by their inner tensors.

    Returns:
        `blake3:` and 64 lower-case hexadecimal digits.

    Raises:
        UnsupportedTensor: the content cannot be read; the message names the tensor.

    Example:
        >>> import torch
        >>> digest_tensor("weight", torch.tensor([1.0, 2.0]))[:20]
        'blake3:8418e68bdafcb'
    """
    content = _content.read(name, tensor)
    state = hasher()
    state.update(PREFIX + len(content.header).to_bytes(8, "little") + content.header)
    for piece in content.pieces:
        for buffer in _content.buffers(piece):
            state.update(buffer)
    return finish(state)


def hasher() -> Any:
    """A BLAKE3 state that uses all cores, where that is safe."""
    from blake3 import blake3

    # The thread pool does not survive a fork: a child that asks for it waits for ever.
    return blake3(max_threads=blake3.AUTO if os.getpid() == _PROCESS else 1)


def finish(state: Any) -> str:
    """The digest of a state, as it is written."""
    return f"{ALGORITHM}:{state.hexdigest()}"
