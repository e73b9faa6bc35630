"""The logical bytes of a tensor, against the slow way; what has none is refused by name."""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from frostline import _content
from frostline.checksums import checksum, matches
from frostline.digests import digest_tensor
from frostline.errors import UnsupportedTensor

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.float4_e2m1fn_x2,
    torch.int4,
    torch.uint4,
    torch.bits8,
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "whole": lambda t: t,
    "0-dim": lambda t: t[1, 2],
    "empty": lambda t: t[:0],
    "transposed": lambda t: t.t(),
    "every second": lambda t: t[::2, 1::3],
    "expanded": lambda t: t[:, None, 1:2].expand(-1, 3, 4),
    "one element of odd stride": lambda t: t[1:2, ::2][:, :1].t(),
    "offset": lambda t: t[1:, 1:],
    "parameter of ones in shape": lambda t: t[None, :, None],
}


def filled(dtype: torch.dtype, rows: int = 6, columns: int = 8) -> Tensor:
    """Every bit random, NaN payloads included."""
    size = rows * columns * dtype.itemsize
    raw = torch.randint(0, 2 if dtype is torch.bool else 256, (size,), dtype=torch.uint8)
    return raw.view(dtype).view(rows, columns)


def slow_bytes(tensor: Tensor) -> bytes:
    """Element by element through the storage: no stride logic of torch but the definition."""
    size, storage = tensor.element_size(), bytes(tensor.untyped_storage().tolist())
    found = []
    for flat in range(tensor.numel()):
        place = tensor.storage_offset()
        for dim in reversed(range(tensor.dim())):
            flat, index = divmod(flat, tensor.shape[dim])
            place += index * tensor.stride(dim)
        found.append(storage[place * size : (place + 1) * size])
    return b"".join(found)


def read_bytes(tensor: Tensor, limit: int = _content.CHUNK) -> bytes:
    pieces = _content.read("weight", tensor).pieces
    return b"".join(bytes(b) for piece in pieces for b in _content.buffers(piece, limit))


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bytes_equal_the_slow_way(dtype: torch.dtype, layout: str) -> None:
    tensor = LAYOUTS[layout](filled(dtype))
    expected = slow_bytes(tensor)
    assert len(expected) == tensor.numel() * dtype.itemsize
    assert read_bytes(tensor) == expected
    for limit in (1, 7, 64):  # cut into pieces, and still the same
        assert read_bytes(tensor, limit) == expected
        (piece,) = _content.read("weight", tensor).pieces
        parts = list(_content.chunks(piece, limit))
        assert b"".join(bytes(p.tolist()) for p in parts) == expected
        assert all(p.numel() <= max(limit, dtype.itemsize) for p in parts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.float8_e5m2], ids=str)
def test_bytes_where_the_storage_starts_one_byte_late(dtype: torch.dtype) -> None:
    memory = bytearray(os.urandom(4 * dtype.itemsize + 1))
    tensor = torch.frombuffer(memory, dtype=dtype, offset=1)
    assert read_bytes(tensor) == bytes(memory[1:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128], ids=str)
def test_strided_bytes_over_unaligned_memory(dtype: torch.dtype) -> None:
    """The copy kernel of torch for complex128 ends the process here."""
    memory = bytearray(os.urandom(12 * dtype.itemsize + 1))
    tensor = torch.frombuffer(memory, dtype=dtype, offset=1).view(3, 4)
    for view in (tensor.t(), tensor[::2, 1:], tensor[1, 2]):
        for limit in (1, 20, 1000):
            assert read_bytes(view, limit) == slow_bytes(view)
    if dtype.is_complex:
        with pytest.raises(UnsupportedTensor, match=r"^w: a lazy conjugate over unaligned"):
            _content.read("w", tensor.conj())


def test_lazy_conjugate_and_negative_bits_are_resolved() -> None:
    z = torch.tensor([[1 + 2j, 3 - 4j], [5 + 6j, -7 + 0j]])
    assert z.conj().is_conj()
    assert z.conj().imag.is_neg()
    assert read_bytes(z.conj()) == slow_bytes(
        torch.tensor([[1 - 2j, 3 + 4j], [5 - 6j, complex(-7, -0.0)]])
    )
    assert read_bytes(z.conj().imag, 4) == slow_bytes(torch.tensor([[-2.0, 4.0], [-6.0, -0.0]]))


def test_large_strided_tensor_is_read_in_bounded_pieces() -> None:
    tensor = torch.arange(3 * 500 * 70, dtype=torch.int32).view(3, 500, 70).transpose(0, 2)
    (piece,) = _content.read("weight", tensor).pieces
    parts = [bytes(buffer) for buffer in _content.buffers(piece, 5000)]
    assert max(map(len, parts)) <= 5000
    assert b"".join(parts) == bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())


class Ops(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_contiguous_memory_is_read_in_place() -> None:
    parameter = nn.Parameter(torch.randn(40, 30))
    with Ops() as ops:
        (buffer,) = _content.buffers(_content.read("weight", parameter).pieces[0])
    assert ops.names == []  # no operation at all, so no copy either
    assert buffer.readonly
    with torch.no_grad():
        parameter[0, 0] = 1.0
    assert bytes(buffer[:4]) == b"\0\0\x80\x3f"  # the same memory
    with Ops() as ops:
        list(_content.buffers(parameter.t()))
    assert any("clone" in name or "copy" in name for name in ops.names)  # the control


def test_reading_touches_nothing() -> None:
    parameter = nn.Parameter(torch.randn(8, 6))
    parameter.grad = torch.ones(8, 6)
    product = (parameter * 2).t()
    state, version = torch.get_rng_state(), parameter._version
    for tensor in (parameter, product, parameter.detach()[::2]):
        before = slow_bytes(tensor)
        assert read_bytes(tensor) == before
    assert parameter._version == version
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(parameter.grad, torch.ones(8, 6))
    product.sum().backward()  # the graph is still whole
    assert torch.equal(parameter.grad, torch.full((8, 6), 3.0))


def test_inference_tensors_are_read_inside_and_outside() -> None:
    with torch.inference_mode():
        tensor = torch.randn(4, 6)
        inside = read_bytes(tensor.t())
    assert tensor.is_inference()
    assert read_bytes(tensor.t()) == inside == slow_bytes(tensor.t())


def test_default_device_does_not_matter() -> None:
    tensor = torch.randn(5, 4)
    with torch.device("meta"):
        assert read_bytes(tensor.t()) == slow_bytes(tensor.t())


# Subclasses


class Scaled(Tensor):
    """A wrapper subclass: codes and a scale, as quantised weights have them."""

    __module__ = "example"
    codes: Tensor
    scale: Tensor
    context: Any

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor, context: Any = None) -> Scaled:
        return Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)  # type: ignore[attr-defined]

    def __init__(self, codes: Tensor, scale: Tensor, context: Any = None) -> None:
        self.codes, self.scale, self.context = codes, scale, context

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return ["codes", "scale"], self.context

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(str(func))


class Mode(enum.Enum):
    __module__ = "example"
    ROWS = 1


@dataclass
class Settings:
    axis: int
    mode: Mode


Settings.__module__ = "example"


def test_wrapper_subclass_is_read_by_its_inner_tensors() -> None:
    codes, scale = torch.randint(-9, 9, (4, 3), dtype=torch.int8), torch.randn(4, 1)
    content = _content.read("fc.weight", Scaled(codes.t().contiguous().t(), scale))
    assert content.description["class"] == "example.Scaled"
    assert [name for name, _ in content.description["inner"]] == ["codes", "scale"]
    got = b"".join(bytes(b) for piece in content.pieces for b in _content.buffers(piece))
    assert got == slow_bytes(codes) + slow_bytes(scale)


def test_wrapper_in_wrapper() -> None:
    inner = Scaled(torch.ones(2, 2, dtype=torch.int8), torch.ones(2, 1))
    content = _content.read("w", Scaled(torch.zeros(2, 2, dtype=torch.int8), inner))
    assert len(content.pieces) == 3
    assert content.description["inner"][1][1]["class"] == "example.Scaled"
    assert read_bytes(Scaled(torch.zeros(2, 2), inner))[16:20] == b"\1\1\1\1"


def test_context_text_is_canonical() -> None:
    def text(context: Any) -> str:
        weight = Scaled(torch.zeros(1, 1), torch.zeros(1, 1), context)
        return str(_content.read("w", weight).description["context"])

    assert text({"b": (1, 2), "a": None}) == text({"a": None, "b": [1, 2]})
    assert text({"b": (1, 2), "a": None}) == "dict('a'=None,'b'=list(0=1,1=2))"
    assert text(Settings(0, Mode.ROWS)) == "example.Settings(axis=0,mode=example.Mode.ROWS)"
    assert text([torch.device("cpu"), torch.int8, math.sqrt]) == (
        "list(0=device,1=torch.int8,2=math.sqrt)"
    )
    assert text({"requires_grad": True}) == text({"requires_grad": False}) == "dict()"
    assert text(1) != text(True) != text("True")


@pytest.mark.parametrize("context", [object(), torch.zeros(1), lambda: 0, {1, 2}])
def test_context_without_canonical_text_is_refused(context: Any) -> None:
    weight = Scaled(torch.zeros(1, 1), torch.zeros(1, 1), {"x": context})
    with pytest.raises(UnsupportedTensor, match=r"^block\.fc\.weight: the metadata"):
        _content.read("block.fc.weight", weight)


class Tagged(nn.Parameter):
    """Only decorates: no dispatcher and no tensors of its own."""


class Opaque(Tensor):
    """Content in a Python list, unreadable from outside."""

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError


def test_decorating_subclass_is_read_as_dense() -> None:
    tagged = Tagged(torch.arange(4.0))
    tagged.no_decay = True  # type: ignore[attr-defined]
    assert read_bytes(tagged) == slow_bytes(torch.arange(4.0))
    assert _content.read("w", tagged).description == {"dtype": "float32", "shape": [4]}


def test_subclass_with_tensors_beside_its_bytes_is_refused() -> None:
    tagged = Tagged(torch.arange(4.0))
    tagged.quant_state = torch.ones(2)  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedTensor, match=r"^layers\.0\.w: .*Tagged.* carries quant_state"):
        _content.read("layers.0.w", tagged)


def torchao_weight(config: str, dtype: torch.dtype = torch.float32) -> Tensor:
    quantization = pytest.importorskip("torchao.quantization")
    net = nn.Sequential(nn.Linear(32, 16, bias=False)).to(dtype)
    quantization.quantize_(net, getattr(quantization, config)())
    return net[0].weight


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("config", "code_type"),
    [("Int8WeightOnlyConfig", "int8"), ("Float8WeightOnlyConfig", "float8_e4m3fn")],
)
def test_torchao_weights_are_walked(config: str, code_type: str) -> None:
    weight = torchao_weight(config)
    assert type(weight) not in (Tensor, nn.Parameter)
    content = _content.read("0.weight", weight)
    inner = dict(content.description["inner"])
    assert inner["qdata"] == {"dtype": code_type, "shape": [16, 32]}
    assert content.description["shape"] == [16, 32]
    attributes, _ = weight.__tensor_flatten__()  # type: ignore[attr-defined]
    expected = b"".join(slow_bytes(getattr(weight, name)) for name in attributes)
    assert read_bytes(weight) == expected


@pytest.fixture
def mesh() -> Iterator[Any]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_dtensor_is_read_by_its_global_value(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

    whole = nn.Parameter(torch.arange(35.0).view(7, 5))
    for placement in (Shard(0), Shard(1), Replicate()):
        part = distribute_tensor(whole.detach(), mesh, [placement]).requires_grad_()
        assert type(part) is DTensor
        assert _content.read("w", part).description == {"dtype": "float32", "shape": [7, 5]}
        assert read_bytes(part) == slow_bytes(whole)
        assert digest_tensor("w", part) == digest_tensor("w", whole)
        assert matches(checksum(whole, 3), part, 3)
        assert not matches(checksum(whole + 1, 3), part, 3)
        assert part.grad is None


# Refusals


def freed() -> Tensor:
    tensor = torch.ones(100)
    tensor.untyped_storage().resize_(0)
    return tensor


def half_freed() -> Tensor:
    tensor = torch.ones(100)
    tensor.untyped_storage().resize_(399)
    return tensor


def fake() -> Tensor:
    with FakeTensorMode():
        return torch.ones(2)


def quantized() -> Tensor:
    return torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "meta": (lambda: torch.empty(3, device="meta"), "meta device"),
    "meta parameter": (lambda: nn.Linear(2, 2, device="meta").weight, "meta device"),
    "lazy": (lambda: nn.LazyLinear(3).weight, "lazy module"),
    "fake": (fake, "fake tensor"),
    "coo": (lambda: torch.eye(3).to_sparse(), r"torch\.sparse_coo"),
    "csr": (lambda: torch.eye(3).to_sparse_csr(), r"torch\.sparse_csr"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "nested",
    ),
    "quantized": (quantized, "quantized"),
    "opaque": (lambda: torch.ones(2).as_subclass(Opaque), "Opaque has no __tensor_flatten__"),
    "meta in wrapper": (
        lambda: Scaled(torch.ones(2, 2, device="meta"), torch.ones(2, 1)),
        "meta device",
    ),
    "freed": (freed, "needs 400 bytes of storage, and 0"),
    "half freed": (half_freed, "needs 400 bytes of storage, and 399"),
}


@pytest.mark.filterwarnings("ignore:Sparse.*beta", "ignore:.*prototype", "ignore:.*deprecated")
@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_bytes_is_refused_by_name(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(UnsupportedTensor, match=rf"^encoder\.layer\.3\.w[a-z.]*: .*{reason}"):
        _content.read("encoder.layer.3.w", make())


def test_refused_under_fake_mode_and_fine_after_it() -> None:
    tensor = torch.ones(3)
    with FakeTensorMode(), pytest.raises(UnsupportedTensor, match=r"^w: .*FakeTensorMode"):
        _content.read("w", tensor)
    assert read_bytes(tensor) == slow_bytes(tensor)


def test_refused_inside_a_transform() -> None:
    def inside(x: Tensor) -> Tensor:
        with pytest.raises(UnsupportedTensor, match=r"^w: .*running transform"):
            _content.read("w", x)
        return x.sum()

    torch.func.vmap(inside)(torch.ones(3, 2))
    torch.func.grad(inside)(torch.ones(3))


def test_storage_that_just_suffices_is_read() -> None:
    tensor = torch.ones(100)
    tensor.untyped_storage().resize_(400)
    assert len(read_bytes(tensor)) == 400
