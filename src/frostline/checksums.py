"""The seal: a keyed checksum of a tensor, computed where the tensor lives.

It tells whether content changed by accident or by code, for the price of reading it once. It is no
proof against somebody who forges weights: for that there are digests (BLAKE3).

Two algorithms, and every record says which one made it. `xxh3-128` reads the memory of a CPU
tensor in place. `mlh64x2` is made of torch operations and runs on any device without moving the
data: multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast", 2014) of
32-bit words with 64-bit keys, in two independent lanes. All of it is integer arithmetic modulo
2**64, so every order of summation on every device gives the same number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from frostline import _content
from frostline._content import Content
from frostline.errors import ManifestError, UnsupportedTensor

HOST = "xxh3-128"
DEVICE = "mlh64x2"

_LANES = 2
_BLOCK = 1 << 16  # words that share one set of keys
BLOCK = 4 * _BLOCK
"""Bytes of content that share one set of keys, and have one sum in each lane."""
_CHUNK = 4 << 20  # bytes at a time: 8 MiB of 64-bit words, 8 MiB of products, 8 MiB of copies
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Checksum:
    """A keyed checksum and the algorithm that made it.

    Attributes:
        algorithm: `xxh3-128` or `mlh64x2`.
        value: 32 hexadecimal digits.
    """

    algorithm: str
    value: str


def checksum(tensor: Tensor, key: int, name: str = "tensor") -> Checksum:
    """Checksum the content of a tensor: its bytes in logical order, its dtype and its shape.

    Strides, offsets, device and `requires_grad` do not enter. Tensors on the CPU are read in
    place; elsewhere the work is done on the device, with at most 32 MiB of temporary memory.

    Args:
        tensor: any tensor that has bytes; wrapper subclasses are read by their inner tensors.
        key: any integer; checksums compare only under the same key.
        name: the full name of the tensor, for messages.

    Raises:
        UnsupportedTensor: the content cannot be read.

    Example:
        >>> import torch
        >>> before = checksum(torch.zeros(3), key=7)
        >>> before == checksum(torch.zeros(3), key=7), before == checksum(-torch.zeros(3), key=7)
        (True, False)
    """
    content = _content.read(name, tensor)
    return _compute(_algorithm_for(content), content, key)


def matches(expected: Checksum, tensor: Tensor, key: int, name: str = "tensor") -> bool:
    """Tell whether a tensor still has the content that a checksum was taken of.

    The algorithm of the record is used, wherever the tensor lives now.

    Raises:
        UnsupportedTensor: the content cannot be read.
        ManifestError: the record names an algorithm that this version does not know.

    Example:
        >>> import torch
        >>> weight = torch.ones(4)
        >>> seal = checksum(weight, key=7)
        >>> weight[2] += 1
        >>> matches(seal, weight, key=7)
        False
    """
    return _compute(expected.algorithm, _content.read(name, tensor), key) == expected


def rounded(
    tensor: Tensor, dtype: torch.dtype, key: int, name: str = "tensor", algorithm: str | None = None
) -> Checksum:
    """Checksum what `tensor.to(dtype)` would be, without making it whole.

    Where torch gives NaN different bits by layout, they are those of a flat contiguous tensor.

    Args:
        tensor: a dense tensor; a wrapper subclass has no rounding of its own.
        dtype: the target, for example `torch.bfloat16`.
        key: as for `checksum`.
        name: the full name of the tensor, for messages.
        algorithm: the algorithm to use; by default the one for the tensor's device.

    Raises:
        UnsupportedTensor: the content cannot be read, or is not one dense tensor.

    Example:
        >>> import torch
        >>> weight = torch.tensor([0.1, 0.2])
        >>> half = weight.to(torch.bfloat16)
        >>> rounded(weight, torch.bfloat16, key=7) == checksum(half, key=7)
        True
    """
    content = _content.read(name, tensor)
    if "inner" in content.description:
        raise UnsupportedTensor(f"{name}: a {type(tensor).__name__} cannot be rounded to {dtype}.")
    (piece,) = content.pieces
    header = Content(_content.describe(dtype, piece.shape), ()).header
    limit = _CHUNK * piece.element_size() // max(piece.element_size(), dtype.itemsize)
    parts = (block.to(dtype) for block in _content.blocks(piece, limit))
    if (algorithm or _algorithm_for(content)) == HOST:
        return _host(header, [_views(parts)], key)
    return _device(header, [(part.view(torch.uint8) for part in parts)], key)


def _algorithm_for(content: Content) -> str:
    local = all(piece.device.type == "cpu" for piece in content.pieces)
    return HOST if local else DEVICE


def _compute(algorithm: str, content: Content, key: int) -> Checksum:
    if algorithm == HOST:
        return _host(content.header, map(_content.buffers, content.pieces), key)
    if algorithm == DEVICE:
        pieces = (_content.chunks(piece, _CHUNK) for piece in content.pieces)
        return _device(content.header, pieces, key)
    raise ManifestError(
        f"unknown checksum algorithm {algorithm!r}: expected {HOST!r} or {DEVICE!r}. The seal was "
        "made by another version; take it again with part.seal()."
    )


def _host(header: bytes, pieces: Iterable[Iterable[memoryview]], key: int) -> Checksum:
    import xxhash

    state = xxhash.xxh3_128(_length_prefixed(header), seed=key & _MASK)
    for piece in pieces:
        for buffer in piece:
            state.update(buffer)
    return Checksum(HOST, state.hexdigest())


def _views(parts: Iterable[Tensor]) -> Iterator[memoryview]:
    for part in parts:
        yield from _content.buffers(part)


def _device(header: bytes, pieces: Iterable[Iterable[Tensor]], key: int) -> Checksum:
    state = hashlib.blake2b(_length_prefixed(header), digest_size=16)
    for chunks in pieces:
        for lane in lanes(chunks, key):
            state.update(lane.to_bytes(8, "little"))
    return Checksum(DEVICE, state.hexdigest())


def _length_prefixed(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


def lanes(chunks: Iterable[Tensor], key: int) -> list[int]:
    """The two 64-bit sums of `mlh64x2` over flat uint8 chunks; see tests for the plain form.

    Every chunk but the last must hold a multiple of 256 KiB, which makes positions independent of
    how the content was cut. The tail is padded with zeros to a whole word: the length is bound by
    the header.
    """
    total: Tensor | None = None
    block = 0
    for chunk in _recut(chunks, _BLOCK * 4):
        sums = _block_sums(_words(chunk), _table(key, chunk.device))
        part = _combine(sums, block, key)
        total = part if total is None else total + part
        block += sums.shape[1]
    return [0] * _LANES if total is None else [lane & _MASK for lane in total.tolist()]


def block_sums(piece: Tensor, key: int, first: int, last: int) -> Tensor:
    """The sums of `mlh64x2` for some blocks of a dense tensor, on its own device.

    Nothing is read back, so nothing waits for the device.

    Args:
        piece: a dense tensor; its content is cut into blocks of `BLOCK` bytes.
        key: as for `checksum`.
        first: number of the first block.
        last: number of the block after the last one; what is beyond the end is left out.

    Returns:
        int64 of shape (lanes, blocks).
    """
    flat = _bytes(piece)
    last = min(last, -(-flat.numel() // BLOCK))
    table, per_chunk = _table(key, piece.device), _CHUNK // BLOCK
    sums = [
        _block_sums(_words(flat[start * BLOCK : min(start + per_chunk, last) * BLOCK]), table)
        for start in range(first, last, per_chunk)
    ]
    return torch.cat(sums, 1) if sums else table.new_empty((_LANES, 0))


def _bytes(piece: Tensor) -> Tensor:
    """The content as one flat uint8 tensor; a view where the memory is the content."""
    chunks = list(_content.chunks(piece, max(1, _content.byte_size(piece))))
    if len(chunks) == 1:
        return chunks[0]
    return torch.cat([torch.empty(0, dtype=torch.uint8, device=piece.device), *chunks])


def _recut(chunks: Iterable[Tensor], unit: int) -> Iterator[Tensor]:
    """Carry what does not fill a block over to the next chunk."""
    rest: Tensor | None = None
    for chunk in chunks:
        chunk = chunk if rest is None else torch.cat([rest, chunk])
        whole = chunk.numel() // unit * unit
        if whole:
            yield chunk[:whole]
        rest = chunk[whole:] if whole < chunk.numel() else None
    if rest is not None:
        yield rest


def _words(chunk: Tensor) -> Tensor:
    """The chunk as int32 words, padded with zero bytes at the end."""
    missing = -chunk.numel() % 4
    if missing:
        chunk = torch.nn.functional.pad(chunk, (0, missing))
    elif chunk.storage_offset() % 4 or chunk.data_ptr() % 4:
        chunk = chunk.clone()
    return chunk.view(torch.int32)


def _block_sums(words: Tensor, table: Tensor) -> Tensor:
    """Multilinear sums of each block of words: int64 of shape (lanes, blocks)."""
    words = words.long()
    whole = words.numel() // _BLOCK * _BLOCK
    full, tail = words[:whole].view(-1, _BLOCK), words[whole:]
    sums = []
    for keys in table:
        parts = [(full * keys).sum(1)] if whole else []
        parts += [(tail * keys[: tail.numel()]).sum().view(1)] if tail.numel() else []
        sums.append(torch.cat(parts))
    return torch.stack(sums)


def _combine(sums: Tensor, first: int, key: int) -> Tensor:
    """Multilinear sum over the blocks, whose 64-bit sums are hashed as two 32-bit words each."""
    index = torch.arange(2 * first, 2 * (first + sums.shape[1]), device=sums.device)
    halves = torch.stack([sums & 0xFFFFFFFF, (sums >> 32) & 0xFFFFFFFF], dim=2).view(_LANES, -1)
    keys = torch.stack([_mix(index, _seed(key, 1, lane)) for lane in range(_LANES)])
    return (halves * keys).sum(1)


@lru_cache(maxsize=8)
def _table(key: int, device: torch.device) -> Tensor:
    """The keys of one block: int64 of shape (lanes, words)."""
    index = torch.arange(_BLOCK, device=device)
    return torch.stack([_mix(index, _seed(key, 0, lane)) for lane in range(_LANES)])


@lru_cache(maxsize=64)
def _seed(key: int, level: int, lane: int) -> int:
    text = f"frostline {DEVICE} {key & _MASK} {level} {lane}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _mix(index: Tensor, seed: int) -> Tensor:
    """SplitMix64 (Steele, Lea and Flood, 2014) at the given positions, as signed 64-bit numbers."""
    z = (index + 1) * _signed(0x9E3779B97F4A7C15) + _signed(seed)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    # The right shift of a signed integer drags the sign along; the mask makes it logical.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
