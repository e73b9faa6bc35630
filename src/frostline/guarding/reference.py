"""The content of a tensor when the guard began: a checksum for each block, and a few old values.

Blocks are small (64 KiB on the CPU), so that a look at a written page reads little, a patrol can
stop anywhere, and a change can be told by where it is. All of it costs 0.02 % of the memory.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from frostline import _content, checksums
from frostline.errors import UnsupportedTensor
from frostline.guarding import local

BLOCK = 64 << 10
"""Bytes of a block on the CPU."""

SAMPLED = 256
"""Elements of which old values are kept, where there is no copy."""


class Blocks(Protocol):
    """One dense piece of a tensor, cut into blocks with a checksum each."""

    nbytes: int
    count: int
    span: tuple[int, int] | None

    def changed(self, first: int, last: int) -> list[int]:
        """Which of the blocks ``first`` to ``last`` (excluded) differ; reads them."""

    def bytes_of(self, first: int, last: int) -> int:
        """How many bytes that reads."""

    def rebind(self, piece: Tensor) -> None:
        """The same content is expected at ``piece`` from now on."""

    def digest(self) -> object:
        """A checksum of what is there now."""


class HostBlocks:
    """A piece on the CPU whose memory is its content: read in place."""

    def __init__(self, piece: Tensor, key: int) -> None:
        self._key = key
        self.nbytes = _content.byte_size(piece)
        self.count = max(1, -(-self.nbytes // BLOCK))
        self.rebind(piece)
        self.expected = self._digests(0, self.count)

    def rebind(self, piece: Tensor) -> None:
        # The storage is kept alive: what the view reads must not be given back to the system.
        self._storage = piece.untyped_storage() if self.nbytes else None
        self._origin = self._storage.data_ptr() if self._storage is not None else 0
        start = piece.data_ptr() if self.nbytes else 0
        self.is_pinned = torch.cuda.is_initialized() and piece.is_pinned()
        self.view = next(iter(_content.buffers(piece)), memoryview(b""))
        self.span = (start, start + self.nbytes) if self.nbytes else None

    @classmethod
    def expecting(cls, piece: Tensor, known: StridedBlocks) -> HostBlocks:
        """At ``piece`` is expected what ``known`` expected where it was."""
        found = cls(piece, known._key)
        found.expected = known.expected
        return found

    @property
    def is_there(self) -> bool:
        """Whether the memory that is read is still this one's: a storage can be resized."""
        return self._storage is None or self._storage.data_ptr() == self._origin

    def changed(self, first: int, last: int) -> list[int]:
        now = self._digests(first, last)
        expected = self.expected[first:last]
        if now == expected:
            return []
        return [first + i for i, (a, b) in enumerate(zip(now, expected, strict=True)) if a != b]

    def bytes_of(self, first: int, last: int) -> int:
        return min(last * BLOCK, self.nbytes) - first * BLOCK

    def digest(self) -> object:
        from xxhash import xxh3_64_intdigest

        return xxh3_64_intdigest(self.view, self._key)

    def _digests(self, first: int, last: int) -> list[int]:
        from xxhash import xxh3_64_intdigest

        view, key = self.view, self._key
        return [
            xxh3_64_intdigest(view[i * BLOCK : (i + 1) * BLOCK], key) for i in range(first, last)
        ]


class StridedBlocks:
    """A piece on the CPU with gaps or lazy bits: one block, read through copies.

    What is expected is kept as :class:`HostBlocks` keeps it, so that a tensor may become dense or
    stop being so (``channels_last``) and still be compared.
    """

    span = None
    count = 1

    def __init__(self, piece: Tensor, key: int) -> None:
        self._key, self._piece = key, piece
        self.nbytes = _content.byte_size(piece)
        self.expected = self._digests()

    def rebind(self, piece: Tensor) -> None:
        self._piece = piece

    @classmethod
    def expecting(cls, piece: Tensor, known: HostBlocks) -> StridedBlocks:
        """At ``piece`` is expected what ``known`` expected where it was."""
        found = cls(piece, known._key)
        found.expected = known.expected
        return found

    def changed(self, first: int, last: int) -> list[int]:
        return [0] if first < last and self._digests() != self.expected else []

    def bytes_of(self, first: int, last: int) -> int:
        return self.nbytes if first < last else 0

    def digest(self) -> object:
        return tuple(self._digests())

    def _digests(self) -> list[int]:
        from xxhash import xxh3_64

        found, state, room = [], xxh3_64(seed=self._key), BLOCK
        for buffer in _content.buffers(self._piece.detach()):
            start = 0
            while start < len(buffer):
                part = buffer[start : start + room]
                state.update(part)
                start, room = start + len(part), room - len(part)
                if not room:
                    found.append(state.intdigest())
                    state, room = xxh3_64(seed=self._key), BLOCK
        return found if room == BLOCK and found else [*found, state.intdigest()]


class DeviceBlocks:
    """A piece on another device: hashed there, and only the verdict is read back."""

    span = None

    def __init__(self, piece: Tensor, key: int) -> None:
        self._key, self._piece = key, piece.detach()
        self.nbytes = _content.byte_size(piece)
        self.count = max(1, -(-self.nbytes // checksums.BLOCK))
        self._expected = self._sums(0, self.count)

    def rebind(self, piece: Tensor) -> None:
        self._piece = piece.detach()
        self._expected = self._expected.to(piece.device)

    def differ(self, first: int, last: int) -> Tensor:
        """A bool for each block, on the device: nothing waits for it."""
        return (self._sums(first, last) != self._expected[:, first:last]).any(0)

    def changed(self, first: int, last: int) -> list[int]:
        return [first + i for i in self.differ(first, last).nonzero().flatten().tolist()]

    def bytes_of(self, first: int, last: int) -> int:
        return min(last * checksums.BLOCK, self.nbytes) - first * checksums.BLOCK

    def digest(self) -> object:
        return self._sums(0, self.count).sum(1).tolist()

    def _sums(self, first: int, last: int) -> Tensor:
        return checksums.block_sums(self._piece, self._key, first, last)


@dataclass(eq=False, repr=False)
class Old:
    """Values that a tensor had: all of them, or some at known places."""

    copy: Tensor | None = None
    values: Tensor | None = None
    count: int = 0

    @property
    def indices(self) -> Tensor | None:
        """The flat positions of ``values``, drawn again: that is cheaper than keeping them."""
        return None if self.values is None else _positions(self.count)


class Reference:
    """The content of one tensor at one moment."""

    def __init__(self, name: str, tensor: Tensor, key: int, *, keep_copy: bool) -> None:
        content = local.read(name, tensor)
        self.name, self._key = name, key
        self.description = content.description
        self._blocks: list[Any] = [_blocks(piece, key) for piece in content.pieces]
        self._bound = True
        self.nbytes = sum(piece.nbytes for piece in self.pieces)
        self.old = _old(tensor, content, keep_copy)

    @property
    def pieces(self) -> list[Blocks]:
        """Where it is read; nothing after :meth:`rebind` said no, since that memory may be gone."""
        return self._blocks if self._bound else []

    @property
    def shape(self) -> list[int]:
        """The shape it had."""
        return list(self.description["shape"])

    @property
    def dtype(self) -> str:
        """The dtype it had."""
        return str(self.description["dtype"])

    def copy(self) -> Reference:
        """The same expectation, to be bound to another tensor."""
        other = copy.copy(self)
        other._blocks = [copy.copy(piece) for piece in self._blocks]
        return other

    def rebind(self, tensor: Tensor) -> bool:
        """Look at the memory of ``tensor`` from now on.

        Returns:
            False if its description is another, if its memory was given back, or if it went to
            another device and no copy is kept. It counts as different then, and is not read.
        """
        self._bound = False
        try:
            content = local.read(self.name, tensor)
        except UnsupportedTensor:
            return False
        if content.description == self.description:
            self._bound = self._is_comparable(content) or self._rehash(content)
        if self._bound:
            self._blocks = [_at(b, p) for b, p in zip(self._blocks, content.pieces, strict=True)]
        return self._bound

    def _is_comparable(self, content: _content.Content) -> bool:
        return all(
            (_kind(piece) is DeviceBlocks) == isinstance(blocks, DeviceBlocks)
            for blocks, piece in zip(self._blocks, content.pieces, strict=True)
        )

    def _rehash(self, content: _content.Content) -> bool:
        """Checksums of another device cannot be compared with; a copy can."""
        copy = self.old.copy
        if copy is None:
            return False
        self._blocks = [_blocks(p.to(n.device), self._key) for p, n in self._pairs(copy, content)]
        return True

    def _pairs(self, copy: Tensor, content: _content.Content) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(local.read(self.name, copy).pieces, content.pieces, strict=True)

    def changed_blocks(self) -> list[tuple[int, int]]:
        """Piece and block of all that differs; reads every byte."""
        return [
            (number, block)
            for number, piece in enumerate(self.pieces)
            for block in piece.changed(0, piece.count)
        ]

    def digest(self) -> tuple[object, ...]:
        """A checksum of what is there now."""
        return tuple(piece.digest() for piece in self.pieces)

    @property
    def differs(self) -> bool:
        """Whether any byte differs; stops at the first block that does."""
        step = 256
        return not self._bound or any(
            piece.changed(first, min(first + step, piece.count))
            for piece in self.pieces
            for first in range(0, piece.count, step)
        )


def _kind(piece: Tensor) -> type:
    if piece.device.type != "cpu":
        return DeviceBlocks
    return HostBlocks if _content.is_plain_memory(piece) else StridedBlocks


def _blocks(piece: Tensor, key: int) -> Any:
    return _kind(piece)(piece, key)


def _at(blocks: Any, piece: Tensor) -> Any:
    """The same expectation at ``piece``, which may have gaps now, or none any more."""
    kind = _kind(piece)
    if kind is HostBlocks and isinstance(blocks, StridedBlocks):
        return HostBlocks.expecting(piece, blocks)
    if kind is StridedBlocks and isinstance(blocks, HostBlocks):
        return StridedBlocks.expecting(piece, blocks)
    blocks.rebind(piece)
    return blocks


def _old(tensor: Tensor, content: _content.Content, keep_copy: bool) -> Old:
    if keep_copy:
        return Old(copy=_copy(local.of(tensor).detach()))
    if len(content.pieces) != 1 or "inner" in content.description:
        return Old()
    (piece,) = content.pieces
    count = piece.numel()
    return Old(values=sampled(piece, _positions(count)), count=count) if count else Old()


def _copy(tensor: Tensor) -> Tensor | None:
    """All of its values; None of a subclass that cannot be cloned."""
    with torch.no_grad():
        if _is_byte_sized(tensor):
            return tensor.view(torch.uint8).clone().view(tensor.dtype)
        try:
            return aligned(tensor).clone()
        except NotImplementedError:
            return None


def _is_byte_sized(tensor: Tensor) -> bool:
    # The sub-byte types have no copy kernel of their own.
    return tensor.element_size() == 1 and not hasattr(type(tensor), "__tensor_flatten__")


def _positions(count: int) -> Tensor:
    """Some of the flat positions of a tensor of ``count`` elements, the same at every call."""
    draw = torch.Generator(device="cpu").manual_seed(count)
    found: Tensor = torch.randint(
        count, (min(SAMPLED, count),), generator=draw, device="cpu"
    ).unique()
    return found


def sampled(piece: Tensor, indices: Tensor) -> Tensor:
    """The values at flat ``indices`` of a dense tensor, on the CPU."""
    flat = piece.detach()
    if _is_byte_sized(flat) and flat.dtype is not torch.uint8:
        codes = sampled(flat.view(torch.uint8), indices)
        return codes.view(piece.dtype)
    if _is_unaligned(flat):
        return _picked(_content._as_bytes(flat), indices, flat.shape).view(piece.dtype).view(-1)
    if not _content.is_plain_memory(flat):
        return _picked(flat, indices, flat.shape).reshape(-1)
    view = flat.as_strided((flat.numel(),), (1,))
    return view[indices.to(flat.device)].cpu()


def _picked(tensor: Tensor, indices: Tensor, shape: torch.Size) -> Tensor:
    positions = torch.unravel_index(indices, shape)
    return tensor[tuple(p.to(tensor.device) for p in positions)].cpu()


def aligned(tensor: Tensor) -> Tensor:
    """The same values where torch expects them; copying complex128 ends the process without."""
    if not _is_unaligned(tensor):
        return tensor
    rows = _content._as_bytes(tensor).clone(memory_format=torch.contiguous_format)
    return rows.view(tensor.dtype).squeeze(-1)


def _is_unaligned(tensor: Tensor) -> bool:
    if hasattr(type(tensor), "__tensor_flatten__") or not tensor.numel():
        return False
    return tensor.data_ptr() % tensor.element_size() != 0


def total(references: Sequence[Reference]) -> int:
    """Bytes that these vouch for."""
    return sum(reference.nbytes for reference in references)


def steps_to_read(nbytes: int, per_step: float) -> int:
    """Steps within which ``nbytes`` are read, ``per_step`` at a time."""
    return max(1, math.ceil(nbytes / per_step)) if per_step > 0 else 0
