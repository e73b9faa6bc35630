"""The reference: any single bit that differs is seen, in its block; equal bytes never are."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections.abc import Callable
from itertools import pairwise

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline import _content, checksums
from frostline.guarding.reference import (
    BLOCK,
    SAMPLED,
    DeviceBlocks,
    HostBlocks,
    Reference,
    StridedBlocks,
    sampled,
    steps_to_read,
    total,
)
from tests.test_content import DTYPES, LAYOUTS, Scaled, Tagged, filled, slow_bytes, torchao_weight

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

KEY = 0x0123_4567_89AB_CDEF


def refer(tensor: Tensor, *, keep_copy: bool = False) -> Reference:
    return Reference("block.fc.weight", tensor, KEY, keep_copy=keep_copy)


def flip(tensor: Tensor, byte: int, bit: int) -> None:
    """Flip one bit of the storage, as a write that torch knows nothing of."""
    storage = tensor.untyped_storage()
    storage[byte] = storage[byte] ^ (1 << bit)


def memory_of(tensor: Tensor, element: int) -> int:
    """Where in the storage the first byte of an element is, by the definition of strides."""
    place = tensor.storage_offset()
    for dim in reversed(range(tensor.dim())):
        element, index = divmod(element, tensor.shape[dim])
        place += index * tensor.stride(dim)
    return place * tensor.element_size()


def is_lazy(tensor: Tensor) -> bool:
    return tensor.is_conj() or tensor.is_neg()


# --- every kind of tensor -----------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout(dtype: torch.dtype, layout: str) -> None:
    tensor = LAYOUTS[layout](filled(dtype))
    for keep_copy in (False, True):
        reference = refer(tensor, keep_copy=keep_copy)
        assert not reference.differs
        assert reference.changed_blocks() == []
        assert reference.nbytes == len(slow_bytes(tensor))
        for element in range(tensor.numel())[:: max(1, tensor.numel() // 4)]:
            flip(tensor, memory_of(tensor, element), 0)
            assert reference.differs
            assert reference.changed_blocks() == [(0, 0)]
            flip(tensor, memory_of(tensor, element), 0)
        assert not reference.differs


@st.composite
def layouts(draw: st.DrawFn) -> Tensor:
    """A tensor over three blocks at most, dense, with gaps, expanded, unaligned or lazy."""
    dtype = draw(st.sampled_from([d for d in DTYPES if d is not torch.complex32]))
    if draw(st.booleans()):
        sides = draw(st.lists(st.integers(1, 9), max_size=4))
    else:
        sides = [draw(st.integers(1, 3 * BLOCK // dtype.itemsize))]
    count = torch.Size(sides).numel()
    spare = draw(st.integers(0, 3))
    raw = bytearray(os.urandom(dtype.itemsize * (2 * count + spare) + 1))
    late = draw(st.integers(0, 1)) if dtype.itemsize > 1 else 0
    flat = torch.frombuffer(raw, dtype=torch.uint8)
    if dtype is torch.bool:
        flat &= 1
    if late:
        whole = torch.frombuffer(raw, dtype=dtype, offset=1)
    else:
        whole = flat[: dtype.itemsize * (2 * count + spare)].view(dtype)
    step = draw(st.sampled_from([1, 2]))
    tensor = whole[spare:].as_strided((count,), (step,)).unflatten(0, sides) if sides else whole[0]
    if sides and draw(st.booleans()):
        tensor = tensor.movedim(0, -1)
    if dtype.is_complex and not late and draw(st.booleans()):
        tensor = tensor.conj()
    return tensor


@settings(max_examples=120, deadline=None)
@given(layouts(), st.data())
def test_any_single_bit_is_seen_in_its_block(tensor: Tensor, data: st.DataObject) -> None:
    reference = refer(tensor)
    (piece,) = reference.pieces
    device = DeviceBlocks(tensor, KEY)
    element = data.draw(st.integers(0, tensor.numel() - 1))
    byte = data.draw(st.integers(0, tensor.element_size() - 1))
    bits = 1 if tensor.dtype is torch.bool else 8
    base = memory_of(tensor, element) + byte
    # The alias shares the memory; frombuffer starts its storage where the tensor starts.
    flip(tensor, base, data.draw(st.integers(0, bits - 1)))
    logical = element * tensor.element_size() + byte
    if isinstance(piece, HostBlocks):
        assert reference.changed_blocks() == [(0, logical // BLOCK)]
        others = [i for i in range(piece.count) if i != logical // BLOCK]
        assert [piece.changed(i, i + 1) for i in others] == [[] for _ in others]
    else:
        assert reference.changed_blocks() == [(0, 0)]
    assert reference.differs
    assert device.changed(0, device.count) == [logical // checksums.BLOCK]


def test_negative_and_conjugate_views_are_read_as_what_they_mean() -> None:
    base = torch.randn(40, dtype=torch.complex64)
    for lazy in (base.conj(), base.conj().imag, base.imag):
        reference = refer(lazy, keep_copy=True)
        assert isinstance(reference.pieces[0], StridedBlocks) or not is_lazy(lazy)
        before = base[3].clone()
        base[3] += 1j
        assert reference.changed_blocks() == [(0, 0)]
        base[3] = before
        assert not reference.differs


def test_a_wrapper_is_read_by_its_inner_tensors() -> None:
    codes, scale = torch.zeros(300, 300, dtype=torch.int8), torch.ones(300, 1)
    reference = refer(Scaled(codes, scale), keep_copy=True)
    codes[299, 299] = 1
    assert reference.changed_blocks() == [(0, 1)]
    scale[0] = 2
    assert reference.changed_blocks() == [(0, 1), (1, 0)]
    assert reference.old.copy is None  # this class has no clone


@pytest.mark.filterwarnings("ignore")
def test_a_torchao_weight() -> None:
    weight = torchao_weight("Int8WeightOnlyConfig")
    reference = refer(weight, keep_copy=True)
    assert reference.old.copy is not None
    weight.qdata[0, 0] += 1
    assert [piece for piece, _ in reference.changed_blocks()] == [
        weight.__tensor_flatten__()[0].index("qdata")
    ]


def test_inference_tensors_buffers_and_decorated_parameters() -> None:
    with torch.inference_mode():
        inference = torch.randn(9)
    for tensor in (inference, nn.Buffer(torch.randn(9)), Tagged(torch.randn(9))):
        for keep_copy in (False, True):
            reference = refer(tensor, keep_copy=keep_copy)
            flip(tensor, 17, 3)
            assert reference.differs
            flip(tensor, 17, 3)
            assert not reference.differs


def test_a_file_mapped_by_safetensors(tmp_path) -> None:
    path = tmp_path / "weights.safetensors"
    saved = {"b": torch.randn(3), "w": torch.randn(200, 200), "h": torch.randn(5).half()}
    safetensors.torch.save_file(saved, path)
    loaded = safetensors.torch.load_file(path)
    for name, tensor in loaded.items():
        reference = refer(tensor)
        same = refer(saved[name])
        assert same.rebind(tensor)
        assert not same.differs
        tensor.view(-1)[-1] += 1
        assert reference.changed_blocks() == [(0, reference.pieces[0].count - 1)]


# --- other memory -------------------------------------------------------------------------

WIDE = (40, 30, 7, 7)  # 235 KB: several blocks
MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "clone": torch.clone,
    "itself": lambda t: t,
    "channels last": lambda t: t.to(memory_format=torch.channels_last),
    "transposed memory": lambda t: t.transpose(0, 3).contiguous().transpose(0, 3),
    "with gaps": lambda t: torch.stack([t, t + 1], -1)[..., 0],
    "at an odd address": lambda t: torch.frombuffer(
        bytearray(b"x" + bytes(t.contiguous().view(-1).view(torch.uint8).tolist())),
        dtype=t.dtype,
        offset=1,
    ).view(t.shape),
}


@pytest.mark.parametrize("where", MOVES)
@pytest.mark.parametrize("first", ["itself", "channels last", "with gaps"])
@pytest.mark.parametrize("keep_copy", [False, True])
def test_equal_content_is_found_again_wherever_it_moves(first, where, keep_copy) -> None:
    tensor = MOVES[first](torch.randn(WIDE))
    reference = refer(tensor, keep_copy=keep_copy)
    moved = MOVES[where](tensor)
    assert reference.rebind(moved)
    assert not reference.differs
    moved[39, 29, 6, 6] += 1
    assert reference.differs
    assert reference.rebind(MOVES["clone"](moved))
    assert reference.differs, "what is expected stays what it was"


@pytest.mark.parametrize("where", ["clone", "channels last"])
def test_moving_to_other_content_differs(where) -> None:
    tensor = torch.randn(WIDE)
    reference = refer(tensor)
    other = MOVES[where](tensor).clone()
    other[0, 0, 0, 1] += 1
    assert reference.rebind(other)
    assert reference.differs


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.double(),
        lambda t: t.view(torch.int32),
        lambda t: t.view(3, 8),
        lambda t: t[:-1],
        lambda t: t[None],
        lambda t: Scaled(t, torch.ones(1)),
    ],
    ids=[
        "dtype",
        "same bytes of another dtype",
        "shape",
        "fewer rows",
        "one dimension more",
        "class",
    ],
)
def test_another_description_is_refused_and_counts_as_different(change) -> None:
    tensor = torch.randn(8, 3)
    reference = refer(tensor)
    assert not reference.rebind(change(tensor))
    assert reference.differs
    assert reference.pieces == []
    assert reference.rebind(tensor), "and back again"
    assert not reference.differs


def test_freed_and_reallocated_memory_is_never_read_again() -> None:
    tensor = torch.randn(100_000)
    reference, kept = refer(tensor), tensor.clone()
    tensor.untyped_storage().resize_(0)
    assert not reference.rebind(tensor)
    assert reference.pieces == []
    assert reference.changed_blocks() == []
    assert reference.differs
    tensor.untyped_storage().resize_(400_000)
    tensor.copy_(kept)
    assert reference.rebind(tensor)
    assert not reference.differs
    tensor.resize_(10_000_000)
    assert not reference.rebind(tensor)
    assert reference.pieces == []


def test_to_another_device_only_with_a_copy() -> None:
    # The CPU is the only device here, so the blocks of another one are put in by hand.
    tensor = torch.randn(100)
    for keep_copy in (False, True):
        reference = refer(tensor, keep_copy=keep_copy)
        reference._blocks = [DeviceBlocks(tensor, KEY)]
        assert reference.rebind(tensor) is keep_copy
        assert reference.differs is not keep_copy


def test_a_copy_is_bound_on_its_own() -> None:
    for make in (torch.clone, MOVES["channels last"]):
        tensor = make(torch.randn(WIDE))
        reference = refer(tensor)
        other, place = reference.copy(), tensor.clone()
        assert other.rebind(place)
        place[0, 0, 0, 0] += 1
        assert (reference.differs, other.differs) == (False, True)
        tensor[0, 0, 0, 0] += 2
        place[0, 0, 0, 0] -= 1
        assert reference.differs
        assert not reference.copy().rebind(tensor[:1])
        assert reference.pieces, "a copy that is let go leaves the other bound"


# --- the blocks of a device ---------------------------------------------------------------


@pytest.mark.parametrize("extra", [-1, 0, 1, BLOCK, 3 * checksums.BLOCK + 5])
def test_blocks_of_a_device_come_to_the_same_verdicts(extra: int) -> None:
    tensor = torch.randint(0, 256, (checksums.BLOCK + extra,), dtype=torch.uint8)
    host, device = HostBlocks(tensor, KEY), DeviceBlocks(tensor, KEY)
    assert host.bytes_of(0, host.count) == device.bytes_of(0, device.count) == tensor.numel()
    before = device.digest()
    assert device.changed(0, device.count) == []
    for byte in (0, tensor.numel() // 2, tensor.numel() - 1):
        flip(tensor, byte, 7)
        assert host.changed(0, host.count) == [byte // BLOCK]
        assert device.changed(0, device.count) == [byte // checksums.BLOCK]
        assert device.digest() != before
        flip(tensor, byte, 7)
    assert device.digest() == before
    moved = tensor.clone()
    device.rebind(moved)
    assert device.changed(0, device.count) == []


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int4, torch.complex128])
def test_blocks_of_a_device_take_every_layout(dtype: torch.dtype, layout: str) -> None:
    tensor = LAYOUTS[layout](filled(dtype))
    device = DeviceBlocks(tensor, KEY)
    assert device.changed(0, device.count) == []
    assert device.differ(0, device.count).any().item() is False
    for element in range(tensor.numel())[:1]:
        flip(tensor, memory_of(tensor, element), 0)
        assert device.changed(0, device.count) == [0]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5 * checksums.BLOCK), st.data())
def test_block_sums_do_not_depend_on_the_split(size: int, data: st.DataObject) -> None:
    tensor = torch.randint(0, 256, (size,), dtype=torch.uint8)
    count = -(-size // checksums.BLOCK)
    whole = checksums.block_sums(tensor, KEY, 0, count)
    assert whole.shape == (2, count)
    cuts = data.draw(st.lists(st.integers(0, count)))
    edges = sorted({0, count, *cuts})
    parts = [checksums.block_sums(tensor, KEY, a, b) for a, b in pairwise(edges)]
    assert torch.equal(torch.cat([torch.empty(2, 0, dtype=torch.int64), *parts], 1), whole)
    first = data.draw(st.integers(0, count))
    alone = checksums.block_sums(
        tensor[first * checksums.BLOCK :].clone(), KEY, 0, max(0, count - first)
    )
    assert torch.equal(whole[:, first:], alone)


def test_block_sums_over_more_than_one_chunk_equal_the_checksum() -> None:
    tensor = torch.randn(2_500_000)  # 10 MB, and a chunk is 4 MiB
    count = -(-tensor.nbytes // checksums.BLOCK)
    sums = checksums.block_sums(tensor, KEY, 0, count)
    combined = checksums._combine(sums, 0, KEY).tolist()
    expected = checksums.lanes(_content.chunks(tensor, 1 << 20), KEY)
    assert [lane & (1 << 64) - 1 for lane in combined] == expected


# --- old values ---------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_samples_are_the_old_values_at_their_positions(dtype: torch.dtype, layout: str) -> None:
    tensor = LAYOUTS[layout](filled(dtype))
    old, data, size = refer(tensor).old, slow_bytes(tensor), tensor.element_size()
    if not tensor.numel():
        assert old.values is None
        assert old.indices is None
        return
    assert old.values is not None
    assert old.indices is not None
    expected = b"".join(data[i * size : (i + 1) * size] for i in old.indices.tolist())
    flat = slow_bytes(old.values.resolve_conj().resolve_neg())
    assert flat == expected
    assert old.values.dtype == dtype


def test_samples_stay_the_old_ones_and_are_few() -> None:
    tensor = torch.randn(300, 400)
    old = refer(tensor.t()).old
    was = tensor.t().contiguous().view(-1)[old.indices].clone()
    tensor.zero_()
    assert torch.equal(old.values, was)
    assert 200 < len(old.indices) <= SAMPLED
    assert len(set(old.indices.tolist())) == len(old.indices)
    assert not sampled(tensor.t(), old.indices).any()
    assert sampled(tensor, torch.tensor([0, 5])).tolist() == [0.0, 0.0]


def test_what_is_kept_is_less_than_a_hundredth() -> None:
    tensor = torch.zeros(25_000_000)  # 100 MB
    gc.collect()
    tracemalloc.start()
    reference = refer(tensor)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept + reference.old.values.nbytes < 0.002 * tensor.nbytes
    assert total([reference, reference]) == 2 * tensor.nbytes


def test_a_reference_keeps_the_storage_and_not_the_tensor() -> None:
    import weakref

    tensor = torch.randn(1000)
    gone = weakref.ref(tensor)
    reference = refer(tensor)
    del tensor
    assert gone() is None, "torch swaps no tensor that somebody else holds"
    assert not reference.differs


@pytest.mark.parametrize(
    ("nbytes", "per_step", "steps"),
    [(0, 10, 1), (10, 10, 1), (11, 10, 2), (100, 0.5, 200), (100, 0, 0)],
)
def test_steps_to_read(nbytes, per_step, steps) -> None:
    assert steps_to_read(nbytes, per_step) == steps
