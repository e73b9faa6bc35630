"""Digests of tensors against published vectors, a second implementation, and every flipped bit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline import _content, digests
from frostline.digests import digest_tensor
from frostline.errors import UnsupportedTensor
from tests import manifest_reference as reference
from tests.test_content import DTYPES, LAYOUTS, Scaled, filled, slow_bytes, torchao_weight

VECTORS = json.loads(
    (Path(__file__).parent / "data" / "manifest-v1-vectors.json").read_text("utf-8")
)
NUMPY = {
    torch.bool: "bool",
    torch.uint8: "uint8",
    torch.int16: "int16",
    torch.int64: "int64",
    torch.uint16: "uint16",
    torch.uint32: "uint32",
    torch.uint64: "uint64",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.float64: "float64",
    torch.complex64: "complex64",
    torch.complex128: "complex128",
}
WORDS = {torch.bfloat16: "uint16", torch.float8_e4m3fn: "uint8", torch.float8_e5m2: "uint8"}


def dense(description: dict[str, Any], data: bytes) -> Tensor:
    dtype = getattr(torch, description["dtype"])
    if not data:
        return torch.empty(description["shape"], dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(description["shape"])


def from_vector(description: dict[str, Any], data: bytes) -> Tensor:
    if "inner" not in description:
        return dense(description, data)
    (_, codes), (_, scale) = description["inner"]
    cut = int(np.prod(codes["shape"]))
    context = {"mode": "rows", "axis": 1}
    return Scaled(dense(codes, data[:cut]), dense(scale, data[cut:]), context)


@pytest.mark.parametrize("vector", VECTORS["tensors"], ids=lambda vector: vector["note"])
def test_published_vectors(vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["bytes"])
    tensor = from_vector(vector["description"], data)
    assert digest_tensor(vector["name"], tensor) == vector["digest"]
    assert reference.tensor_digest(vector["description"], data) == vector["digest"]
    assert json.loads(_content.read("w", tensor).header) == vector["description"]


def test_there_are_ten_vectors_and_they_differ() -> None:
    assert len({vector["digest"] for vector in VECTORS["tensors"]}) == 10


@st.composite
def views(draw: st.DrawFn) -> tuple[Tensor, np.ndarray, str | None]:
    """The same strided view of random bytes, by torch and by numpy."""
    dtype = draw(st.sampled_from([*NUMPY, *WORDS]))
    shape = draw(st.lists(st.integers(0, 5), max_size=4))
    offset = draw(st.integers(0, 9))  # bytes, so mostly not aligned
    count = int(np.prod(shape, dtype=int))
    seed = draw(st.integers(0, 2**32))
    raw = bytearray(np.random.default_rng(seed).bytes(offset + count * dtype.itemsize))
    if dtype is torch.bool:
        raw = bytearray(byte & 1 for byte in raw)
    array = np.frombuffer(raw, NUMPY.get(dtype) or WORDS[dtype], offset=offset).reshape(shape)
    tensor = torch.empty(shape, dtype=dtype)
    if count:
        tensor = torch.frombuffer(raw, dtype=dtype, offset=offset).reshape(shape)
    order = draw(st.permutations(range(len(shape))))
    steps = tuple(slice(draw(st.integers(0, 1)), None, draw(st.integers(1, 3))) for _ in shape)
    name = str(dtype)[6:] if dtype in WORDS else None
    return tensor.permute(order)[steps], np.asarray(array.transpose(order)[steps]), name


@settings(max_examples=300, deadline=None)
@given(views())
def test_second_implementation_agrees(view: tuple[Tensor, np.ndarray, str | None]) -> None:
    tensor, array, name = view
    assert tuple(tensor.shape) == array.shape
    assert digest_tensor("w", tensor) == reference.dense_digest(array, name)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout(dtype: torch.dtype, layout: str) -> None:
    tensor = LAYOUTS[layout](filled(dtype))
    description = {"dtype": str(dtype)[6:], "shape": list(tensor.shape)}
    assert digest_tensor("w", tensor) == reference.tensor_digest(description, slow_bytes(tensor))


def test_every_bit_counts() -> None:
    tensor = torch.randint(0, 256, (3, 8), dtype=torch.uint8)
    found = {digest_tensor("w", tensor)}
    for bit in range(8 * 24):
        changed = tensor.clone()
        changed.view(-1)[bit // 8] ^= 1 << bit % 8
        found.add(digest_tensor("w", changed))
    assert len(found) == 1 + 8 * 24


def test_order_value_type_and_shape_count() -> None:
    tensor = torch.randn(4, 4)
    others = [
        tensor[[1, 0, 2, 3]],
        tensor.flip(1),
        tensor.t(),
        tensor.view(2, 8),
        tensor.view(16),
        tensor.view(torch.int32),
        tensor.double(),
        torch.zeros(4, 4),
        -torch.zeros(4, 4),
        torch.ones(4, 4),
        torch.zeros(4, 5),
        torch.zeros(4, 0),
        torch.zeros(0, 4),
        torch.tensor(0.0),
        torch.zeros(1),
    ]
    assert len({digest_tensor("w", t) for t in [tensor, *others]}) == 1 + len(others)


def test_what_is_no_content_does_not_count() -> None:
    tensor = torch.randn(6, 4)
    expected = digest_tensor("w", tensor)
    same = [
        nn.Parameter(tensor.clone()),
        tensor.clone().requires_grad_() * 1,
        tensor.t().contiguous().t(),
        torch.cat([torch.zeros(1), tensor.view(-1)])[1:].view(6, 4),
    ]
    with torch.inference_mode():
        same.append(tensor.clone())
    for other in same:
        assert digest_tensor("another.name", other) == expected


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("config", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_torchao_weights(config: str) -> None:
    weight = torchao_weight(config)
    before = digest_tensor("w", weight)
    assert digest_tensor("w", weight.detach()) == before
    attributes, _ = weight.__tensor_flatten__()  # type: ignore[attr-defined]
    for name in attributes:
        inner = getattr(weight, name)
        kept = inner.clone()
        inner.view(torch.uint8).view(-1)[-1] ^= 1
        assert digest_tensor("w", weight) != before, f"a bit of {name} went unnoticed"
        inner.copy_(kept)
    assert digest_tensor("w", weight) == before


def test_header_cannot_run_into_the_bytes() -> None:
    """Without the length in front, a description could continue in the data."""
    plain = digest_tensor("w", torch.tensor([1, 2], dtype=torch.uint8))
    header = _content.read("w", torch.tensor([1, 2], dtype=torch.uint8)).header
    forged = torch.tensor(list(header + b"\1\2"), dtype=torch.uint8)
    assert digest_tensor("w", forged) != plain
    assert plain == reference.tensor_digest({"dtype": "uint8", "shape": [2]}, b"\1\2")


def test_refusal_carries_the_name() -> None:
    with pytest.raises(UnsupportedTensor, match=r"^decoder\.w: "):
        digest_tensor("decoder.w", torch.empty(2, device="meta"))


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forked_child_does_not_wait_for_threads_it_has_not() -> None:
    """BLAKE3's pool has no threads after a fork; using it there hangs for ever."""
    tensor = torch.zeros(4 << 20)  # large enough for the pool
    expected = digest_tensor("w", tensor)
    assert digests.hasher() is not None
    child = os.fork()
    if child == 0:
        import signal

        signal.alarm(5)
        os._exit(0 if digest_tensor("w", tensor) == expected else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
