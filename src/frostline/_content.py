"""The logical bytes of a tensor: row-major, little-endian, whatever its strides, device, class.

A tensor is described by a small canonical header (dtype, shape, and for a wrapper subclass its
class, its metadata and its inner tensors) and by the dense tensors that hold its bytes. Digests
and checksums are both computed over exactly this. Reading never writes: no version moves, no
gradient is touched, no random number is drawn.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from frostline.errors import UnsupportedTensor

CHUNK = 64 << 20
"""Bytes that a strided or remote tensor is copied at a time."""

_PLAIN = (Tensor, torch.nn.Parameter, torch.nn.Buffer)
_VALUES = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.layout)
_PyBUF_READ = 0x100
_FAKE = torch._C._TorchDispatchModeKey.FAKE
_memory = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)


@dataclass(frozen=True, slots=True)
class Content:
    """What a tensor consists of.

    Attributes:
        description: dtype and shape, and for a wrapper subclass its class, context and inner parts.
        pieces: the dense tensors that hold the bytes, in order; views, never copies of local data.
    """

    description: dict[str, Any]
    pieces: tuple[Tensor, ...]

    @property
    def header(self) -> bytes:
        """The description as canonical JSON (RFC 8785) in UTF-8."""
        return canonical_json(self.description)


def canonical_json(value: object) -> bytes:
    """Sorted keys, no blanks, UTF-8: what RFC 8785 prescribes for strings, integers, containers."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def read(name: str, tensor: Tensor) -> Content:
    """Describe a tensor and find the dense tensors that hold its bytes.

    A DTensor is read by its global value, which is a collective: every rank of its mesh must call.

    Raises:
        UnsupportedTensor: there are no bytes to read (meta, fake, lazy, freed), or not in a known
            order (sparse, nested, quantized, an opaque subclass). The message starts with `name`.
    """
    _refuse_without_bytes(name, tensor)
    if _is_dtensor(tensor):
        with torch.no_grad():
            return read(name, tensor.detach().full_tensor())  # type: ignore[attr-defined]
    if hasattr(type(tensor), "__tensor_flatten__"):
        return _read_wrapper(name, tensor)
    dense = tensor if type(tensor) in _PLAIN else _without_subclass(name, tensor)
    _refuse_without_memory(name, dense)
    return Content(describe(dense.dtype, dense.shape), (dense,))


def describe(dtype: torch.dtype, shape: torch.Size) -> dict[str, Any]:
    """The description of a dense tensor."""
    return {"dtype": dtype_name(dtype), "shape": [int(size) for size in shape]}


def dtype_name(dtype: torch.dtype) -> str:
    """`float32` for `torch.float32`."""
    return str(dtype).removeprefix("torch.")


def byte_size(piece: Tensor) -> int:
    """Bytes of the logical content, which for an expanded view is more than what it occupies."""
    return piece.numel() * piece.element_size()


def buffers(piece: Tensor, limit: int = CHUNK) -> Iterator[memoryview]:
    """The bytes of a dense tensor as read-only buffers, in logical order.

    A contiguous tensor on the CPU is one buffer over its own memory; anything else is copied to
    the host at most `limit` bytes at a time. Use a buffer before asking for the next one.
    """
    if piece.device.type == "cpu" and is_plain_memory(piece):
        if piece.numel():
            yield _memory(piece.data_ptr(), byte_size(piece), _PyBUF_READ)
        return
    for chunk in chunks(piece, limit):
        host = chunk.cpu()
        yield _memory(host.data_ptr(), host.numel(), _PyBUF_READ)


def chunks(piece: Tensor, limit: int = CHUNK) -> Iterator[Tensor]:
    """The bytes of a dense tensor as flat uint8 tensors on its own device, in logical order.

    Each holds at most `limit` bytes, or one element. Contiguous tensors give views.
    """
    piece = piece.detach()
    if piece.element_size() == 1:  # the sub-byte types have no copy kernel of their own
        piece = piece.view(torch.uint8)
    elif piece.numel() and piece.data_ptr() % piece.element_size():
        piece = _as_bytes(piece)
    for block in blocks(piece, limit):
        yield block.view(torch.uint8)


def blocks(piece: Tensor, limit: int = CHUNK) -> Iterator[Tensor]:
    """The elements of a dense tensor as flat contiguous tensors of its dtype, in logical order."""
    piece = piece.detach()
    if is_plain_memory(piece):
        flat, step = _flat(piece), max(1, limit // piece.element_size())
        for start in range(0, len(flat), step):
            yield flat[start : start + step]
    else:
        yield from _strided_blocks(piece, limit)


def is_plain_memory(piece: Tensor) -> bool:
    """Whether the memory from `data_ptr` on is the logical content, byte for byte."""
    return piece.is_contiguous() and not piece.is_conj() and not piece.is_neg()


def _as_bytes(piece: Tensor) -> Tensor:
    """The same memory with a last dimension of bytes.

    The copy kernels of torch expect aligned elements; complex128 ends the process without.
    """
    size = piece.element_size()
    resolved = torch.empty(0, dtype=torch.uint8, device=piece.device)
    steps = [step * size for step in piece.stride()]
    return resolved.set_(
        piece.untyped_storage(), piece.storage_offset() * size, (*piece.shape, size), (*steps, 1)
    )


def _flat(piece: Tensor) -> Tensor:
    # Not view(-1): a single element may keep an odd stride, which a view of other type refuses.
    return piece.as_strided((piece.numel(),), (1,))


def _strided_blocks(piece: Tensor, limit: int) -> Iterator[Tensor]:
    if byte_size(piece) <= limit or piece.dim() == 0:
        whole = piece.resolve_conj().resolve_neg().contiguous()
        yield _flat(whole)
        return
    rows = limit // byte_size(piece[0])
    if rows == 0:
        for row in piece:
            yield from _strided_blocks(row, limit)
        return
    for start in range(0, len(piece), rows):
        yield from _strided_blocks(piece[start : start + rows], limit)


def _is_dtensor(tensor: Tensor) -> bool:
    # Whoever holds a DTensor has imported the module; importing it here would cost everyone else.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _read_wrapper(name: str, tensor: Tensor) -> Content:
    attributes, context = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    parts = [read(f"{name}.{inner}", getattr(tensor, inner)) for inner in attributes]
    description = describe(tensor.dtype, tensor.shape) | {
        "class": _qualified(type(tensor)),
        "context": _canonical_context(name, context),
        "inner": [[a, part.description] for a, part in zip(attributes, parts, strict=True)],
    }
    return Content(description, tuple(piece for part in parts for piece in part.pieces))


def _without_subclass(name: str, tensor: Tensor) -> Tensor:
    """A subclass that only decorates: its own storage is all there is to it."""
    state = {key: value for key, value in vars(tensor).items() if not _is_plain_value(value)}
    if _has_own_dispatch(type(tensor)) or state:
        carries = f" and carries {', '.join(sorted(state))} beside its bytes" if state else ""
        raise UnsupportedTensor(
            f"{name}: {_qualified(type(tensor))} has no __tensor_flatten__{carries}, so its "
            "content cannot be read. Expected a plain tensor or a wrapper that can be flattened. "
            "Leave it out with exclude=..., or implement __tensor_flatten__."
        )
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def _has_own_dispatch(cls: type) -> bool:
    return getattr(cls, "__torch_dispatch__", None) is not Tensor.__torch_dispatch__


def _is_plain_value(value: object) -> bool:
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(_is_plain_value(item) for item in value)
    return isinstance(value, (*_VALUES, type, torch.device)) or inspect.isroutine(value)


def _qualified(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"


def _canonical_context(name: str, value: object) -> str:
    """A text that is the same for the same metadata in every process and on every device."""
    if isinstance(value, torch.device):
        return "device"  # the same content on another device is the same content
    if isinstance(value, enum.Enum):
        return f"{_qualified(type(value))}.{value.name}"
    if isinstance(value, _VALUES):
        return repr(value)
    if isinstance(value, type) or (inspect.isroutine(value) and "<" not in value.__qualname__):
        return _qualified(value)
    items = _context_items(value)
    if items is None:
        raise UnsupportedTensor(
            f"{name}: the metadata of its subclass holds a {_qualified(type(value))}, for which no "
            "canonical text is known. Expected plain values, enums, dataclasses or containers of "
            "them. Leave the tensor out with exclude=..."
        )
    body = ",".join(f"{key}={_canonical_context(name, item)}" for key, item in items)
    return f"{_container(value)}({body})"


def _context_items(value: object) -> list[tuple[str, object]] | None:
    if isinstance(value, Mapping):
        # requires_grad is a state of training, not content; freezing itself switches it.
        pairs = [(repr(key), item) for key, item in value.items() if key != "requires_grad"]
        return sorted(pairs, key=lambda pair: pair[0])
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, (list, tuple)):
        return [(str(i), item) for i, item in enumerate(value)]
    return None


def _container(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "list"
    return "dict" if isinstance(value, Mapping) else _qualified(type(value))


def _refuse_without_bytes(name: str, tensor: Tensor) -> None:
    reason = _why_unreadable(tensor)
    if reason:
        raise UnsupportedTensor(f"{name}: {reason}")


def _why_unreadable(tensor: Tensor) -> str | None:
    if isinstance(tensor, UninitializedTensorMixin):
        return "not initialised yet (a lazy module). Run one batch through the model first."
    if isinstance(tensor, FakeTensor) or torch._C._get_dispatch_mode(_FAKE) is not None:
        return "a fake tensor, or FakeTensorMode is active, so there are no bytes. Leave that mode."
    if tensor.is_nested:
        return "a nested tensor; its content has no agreed order. Leave it out with exclude=..."
    if tensor.layout is not torch.strided:
        return f"layout is {tensor.layout}, expected torch.strided. Convert it with .to_dense()."
    if tensor.is_quantized:
        return f"a quantized tensor ({tensor.dtype}), expected a dense dtype. Use .int_repr()."
    if tensor.is_meta:
        return "on the meta device, so it has no data. Load the weights first."
    return None


def _refuse_without_memory(name: str, dense: Tensor) -> None:
    """Reading past a storage that somebody freed would end the process, so look before."""
    if not dense.numel():
        return
    try:
        available = dense.untyped_storage().nbytes() if dense.data_ptr() else 0
    except RuntimeError:  # a wrapper of vmap, grad or functionalisation
        available = 0
    last = sum((size - 1) * step for size, step in zip(dense.shape, dense.stride(), strict=True))
    needed = (dense.storage_offset() + last + 1) * dense.element_size()
    if available < needed:
        raise UnsupportedTensor(
            f"{name}: needs {needed} bytes of storage, and {available} are there. It was freed or "
            "resized (FSDP frees gathered weights), or belongs to a running transform. Read it "
            "outside, or gather it first."
        )
    if (dense.is_conj() or dense.is_neg()) and dense.data_ptr() % dense.element_size():
        raise UnsupportedTensor(f"{name}: a lazy conjugate over unaligned memory. Clone it first.")
    if sys.byteorder != "little":
        raise UnsupportedTensor(f"{name}: this machine is big-endian; only little-endian is read.")
