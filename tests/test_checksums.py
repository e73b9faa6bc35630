"""The seal: both algorithms against plain forms, what they must catch, what they must not do."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from frostline import _content, checksums
from frostline.checksums import Checksum, checksum, matches, rounded
from frostline.errors import ManifestError, UnsupportedTensor
from tests.test_content import DTYPES, LAYOUTS, Scaled, filled, slow_bytes

KEY = 0x1234_5678_9ABC_DEF0_1234
ALGORITHMS = ["xxh3-128", "mlh64x2"]
WORDS = 1 << 16  # words in a block, from the definition


def by(algorithm: str, tensor: Tensor, key: int = KEY) -> str:
    """The value under one algorithm, wherever the tensor lives."""
    return checksums._compute(algorithm, _content.read("w", tensor), key).value


# The definition of mlh64x2, in plain integers


def splitmix(seed: int, index: int) -> int:
    mask = (1 << 64) - 1
    z = (seed + (index + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def plain_lane(data: bytes, key: int, lane: int) -> int:
    def seed(level: int) -> int:
        text = f"frostline mlh64x2 {key % 2**64} {level} {lane}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")

    low, high, total = seed(0), seed(1), 0
    padded = data + bytes(-len(data) % 4)
    for block in range(0, len(padded), 4 * WORDS):
        words = [
            int.from_bytes(padded[i : i + 4], "little", signed=True)
            for i in range(block, min(block + 4 * WORDS, len(padded)), 4)
        ]
        inner = sum(word * splitmix(low, i) for i, word in enumerate(words)) % 2**64
        number = block // (4 * WORDS)
        total += (inner % 2**32) * splitmix(high, 2 * number)
        total += (inner >> 32) * splitmix(high, 2 * number + 1)
    return total % 2**64


def plain_mlh(tensor: Tensor, key: int) -> str:
    header = json.dumps(
        {"dtype": str(tensor.dtype)[6:], "shape": list(tensor.shape)},
        separators=(",", ":"),
        sort_keys=True,
    ).encode()
    state = hashlib.blake2b(len(header).to_bytes(8, "little") + header, digest_size=16)
    for lane in range(2):
        state.update(plain_lane(slow_bytes(tensor), key, lane).to_bytes(8, "little"))
    return state.hexdigest()


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_algorithms_equal_their_plain_forms(dtype: torch.dtype, layout: str) -> None:
    tensor = LAYOUTS[layout](filled(dtype))
    assert by("mlh64x2", tensor) == plain_mlh(tensor, KEY)
    header = _content.read("w", tensor).header
    whole = len(header).to_bytes(8, "little") + header + slow_bytes(tensor)
    assert by("xxh3-128", tensor) == xxhash.xxh3_128_hexdigest(whole, seed=KEY % 2**64)


@pytest.mark.parametrize("start", range(5))
@pytest.mark.parametrize("missing", range(5))
def test_mlh_tail_and_offset_rules(start: int, missing: int) -> None:
    tensor = filled(torch.uint8).view(-1)[start : 48 - missing]
    assert by("mlh64x2", tensor) == plain_mlh(tensor, KEY)


@pytest.mark.parametrize("extra", [-1, 0, 1, 3 * 4 * WORDS // 2])
def test_mlh_over_several_blocks(extra: int) -> None:
    size = 4 * WORDS + extra
    tensor = torch.randint(0, 256, (size,), dtype=torch.uint8)
    memory = bytes(tensor.tolist())
    header = f'{{"dtype":"uint8","shape":[{size}]}}'.encode()
    state = hashlib.blake2b(len(header).to_bytes(8, "little") + header, digest_size=16)
    for lane in range(2):
        state.update(plain_lane(memory, KEY, lane).to_bytes(8, "little"))
    assert by("mlh64x2", tensor) == state.hexdigest()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=6), st.integers(0, 2**70))
def test_mlh_does_not_depend_on_how_the_content_was_cut(sizes: list[int], key: int) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    whole = torch.randint(0, 256, (100 * sum(sizes),), dtype=torch.uint8, generator=generator)
    parts = whole.split([100 * n for n in sizes])
    assert checksums.lanes(parts, key) == checksums.lanes([whole], key)


def test_large_strided_equals_contiguous() -> None:
    tensor = torch.randn(1100, 1300)  # 5.7 MB: more than one chunk
    for algorithm in ALGORITHMS:
        assert by(algorithm, tensor.t()) == by(algorithm, tensor.t().contiguous())
        assert by(algorithm, tensor[:, ::3]) == by(algorithm, tensor[:, ::3].contiguous())
        assert by(algorithm, tensor.t()) != by(algorithm, tensor)


# What must be caught


def negate(*places: int) -> Callable[[Tensor], Tensor]:
    def act(tensor: Tensor) -> Tensor:
        changed = tensor.clone()
        for place in places:
            changed[place] = -changed[place]
        return changed

    return act


def swap(tensor: Tensor) -> Tensor:
    changed = tensor.clone()
    changed[[3, 200]] = tensor[[200, 3]]
    return changed


MUTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "one sign": negate(5),
    "two signs": negate(5, 6),
    "two signs, far apart": negate(5, 505),
    "two signs, one word apart": negate(4, 6),
    "all signs": lambda t: -t,
    "swap": swap,
    "reversed": lambda t: t.flip(0),
    "rotated": lambda t: t.roll(1),
    "other shape": lambda t: t.view(2, -1),
    "other dtype": lambda t: t.view(torch.int32),
    "other dtype and shape": lambda t: t.view(torch.float64),
    "one more": lambda t: torch.cat([t, torch.zeros(1)]),
    "one less": lambda t: t[:-1],
    "smallest step": lambda t: torch.nextafter(t, torch.tensor(9.0)),
    "first bit": lambda t: (t.view(torch.int32) ^ (torch.arange(512) == 0)).view(torch.float32),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_is_caught(mutation: str, algorithm: str) -> None:
    tensor = torch.randn(512)
    assert by(algorithm, MUTATIONS[mutation](tensor)) != by(algorithm, tensor)
    assert by(algorithm, tensor.clone()) == by(algorithm, tensor)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_bit_and_every_pair_of_top_bits(algorithm: str) -> None:
    tensor = torch.randint(0, 256, (24,), dtype=torch.uint8)
    values = {by(algorithm, tensor)}
    for bit in range(8 * 24):
        changed = tensor.clone()
        changed[bit // 8] ^= 1 << bit % 8
        values.add(by(algorithm, changed))
    assert len(values) == 1 + 8 * 24
    pairs = {by(algorithm, tensor)}
    for first in range(24):
        for second in range(first):
            changed = tensor.clone()
            changed[[first, second]] ^= 0x80
            pairs.add(by(algorithm, changed))
    assert len(pairs) == 1 + 24 * 23 // 2


def test_each_lane_of_mlh_catches_alone() -> None:
    """One dead lane would go unnoticed in the hash of both."""
    tensor = torch.randn(512)
    before = checksums.lanes([tensor.view(torch.uint8)], KEY)
    for mutate in (negate(5, 6), swap, MUTATIONS["reversed"], MUTATIONS["rotated"]):
        after = checksums.lanes([mutate(tensor).view(torch.uint8)], KEY)
        assert all(a != b for a, b in zip(before, after, strict=True))
    assert before[0] != before[1]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_constant_tensors_of_all_sizes_differ(algorithm: str) -> None:
    tensors = [torch.full((n,), v, dtype=torch.uint8) for n in range(20) for v in (0, 1, 255)]
    assert len({by(algorithm, t) for t in tensors}) == 1 + 19 * 3  # the empty ones are the same
    shapes = [(0,), (0, 3), (3, 0), (1, 0)]
    assert len({by(algorithm, torch.zeros(s)) for s in shapes}) == len(shapes)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_blocks_cannot_be_exchanged(algorithm: str) -> None:
    first, second = torch.randint(0, 256, (2, 4 * WORDS), dtype=torch.uint8)
    assert by(algorithm, torch.cat([first, second])) != by(algorithm, torch.cat([second, first]))
    flipped = torch.cat([first, first])
    flipped[[7, 4 * WORDS + 7]] ^= 0x80  # the same top bit in both blocks, at the same place
    assert by(algorithm, flipped) != by(algorithm, torch.cat([first, first]))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_random_changes(algorithm: str) -> None:
    chance, tensor = random.Random(3), torch.randn(3000)
    before = by(algorithm, tensor)
    for _ in range(300):
        places = torch.tensor(chance.sample(range(3000), chance.randint(1, 8)))
        changed = tensor.clone()
        changed.view(torch.int32)[places] ^= 1 << chance.randrange(31)
        assert by(algorithm, changed) != before


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_key_decides(algorithm: str) -> None:
    tensor = torch.randn(100)
    values = {by(algorithm, tensor, key) for key in (0, 1, -1, 2**63, 2**64 - 2, 77)}
    assert len(values) == 6
    assert by(algorithm, tensor, 2**64 + 77) == by(algorithm, tensor, 77)


# The record


def test_cpu_tensors_are_read_in_place_by_xxh3() -> None:
    class Ops(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    weight = nn.Parameter(torch.randn(30, 20))
    with Ops():
        record = checksum(weight, KEY)
        assert matches(record, weight, KEY)
    assert record.algorithm == "xxh3-128"
    assert seen == []


def test_mlh_makes_small_temporaries_and_leaves_the_device_once() -> None:
    sizes: list[int] = []
    local: list[str] = []

    class Outputs(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if "_local_scalar_dense" in str(func):
                local.append(str(func))
            if isinstance(result, Tensor) and not func.is_view:
                sizes.append(result.untyped_storage().nbytes())
            return result

    for tensor in (torch.zeros(5 << 20), torch.zeros(5000, 1050).t()):  # 20 MiB
        content = _content.read("w", tensor)
        with Outputs():
            checksums._compute("mlh64x2", content, KEY)
        # Alive at once: a chunk copied twice at most, its words and one product.
        assert max(sizes) <= 8 << 20
        assert len(local) <= 2  # the two lanes, at the end
        local.clear()


def test_record_decides_the_algorithm() -> None:
    tensor = torch.randn(9)
    for algorithm in ALGORITHMS:
        record = Checksum(algorithm, by(algorithm, tensor))
        assert matches(record, tensor, KEY)
        assert not matches(record, tensor, KEY + 1)
        assert not matches(record, tensor + 1, KEY)
    assert by("xxh3-128", tensor) != by("mlh64x2", tensor)
    with pytest.raises(ManifestError, match="unknown checksum algorithm 'crc32'"):
        matches(Checksum("crc32", "0" * 32), tensor, KEY)


def test_record_is_a_plain_value() -> None:
    record = checksum(torch.ones(3), KEY)
    assert len(record.value) == 32
    assert pickle.loads(pickle.dumps(record)) == copy.deepcopy(record) == record
    assert len({record, checksum(torch.ones(3), KEY)}) == 1
    with pytest.raises(AttributeError):
        record.value = "0"  # type: ignore[misc]


def test_keys_made_in_inference_mode_serve_outside() -> None:
    checksums._table.cache_clear()
    tensor = torch.randn(9)
    with torch.inference_mode():
        inside = by("mlh64x2", tensor)
    with torch.device("meta"):
        assert by("mlh64x2", nn.Parameter(tensor, requires_grad=True)) == inside
    checksums._table.cache_clear()
    assert by("mlh64x2", tensor) == inside


def test_subclasses_are_covered_with_their_metadata() -> None:
    def weight(codes: int = 1, scale: float = 1.0, context: Any = None) -> Scaled:
        return Scaled(torch.full((2, 2), codes, dtype=torch.int8), torch.tensor([scale]), context)

    for algorithm in ALGORITHMS:
        values = [
            by(algorithm, w) for w in (weight(), weight(2), weight(1, 2.0), weight(1, 1.0, 1))
        ]
        assert len(set(values)) == 4
        assert by(algorithm, weight()) == values[0]
    with pytest.raises(UnsupportedTensor, match=r"^fc\.weight: a Scaled cannot be rounded"):
        rounded(weight(), torch.bfloat16, KEY, "fc.weight")


def test_refusal_carries_the_name() -> None:
    with pytest.raises(UnsupportedTensor, match=r"^encoder\.w: "):
        checksum(torch.empty(2, device="meta"), KEY, "encoder.w")


# Roundings


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("target", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("source", [torch.float32, torch.float64], ids=str)
def test_rounded_equals_rounding_whole(
    source: torch.dtype, target: torch.dtype, algorithm: str
) -> None:
    tensor = torch.randn(1500, 801, dtype=torch.float64).mul(1e-3).to(source)  # several chunks
    tensor[0, :3] = torch.tensor([float("nan"), float("inf"), 1e-40])
    for view in (tensor, tensor.t(), tensor[::7], tensor[0, 0], tensor[:0]):
        # torch gives NaN other bits on its strided and scalar paths than on the contiguous one.
        flat = view.contiguous().view(-1).to(target)
        expected = by(algorithm, flat.view(view.shape))
        assert rounded(view, target, KEY, algorithm=algorithm).value == expected
    assert rounded(tensor, target, KEY) == checksum(tensor.to(target), KEY)


def test_round_trip_through_bfloat16_is_recognised() -> None:
    weight = torch.randn(100)
    record = rounded(weight, torch.bfloat16, KEY)
    there_and_back = weight.to(torch.bfloat16).to(torch.float32)
    assert not torch.equal(there_and_back, weight)
    assert rounded(there_and_back, torch.bfloat16, KEY) == record
    there_and_back[3] *= 1.01
    assert rounded(there_and_back, torch.bfloat16, KEY) != record
