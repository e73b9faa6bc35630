"""How large a change is: exactly what counting element by element gives, or nothing."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor, nn

from frostline.guarding.reference import Reference
from frostline.guarding.sizing import Size, size
from tests.test_content import DTYPES, LAYOUTS, Scaled, filled, slow_bytes, torchao_weight

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

SUB_BYTE = (torch.float4_e2m1fn_x2, torch.int4, torch.uint4, torch.bits8)


def refer(tensor: Tensor, *, keep_copy: bool = True) -> Reference:
    return Reference("w", tensor, 7, keep_copy=keep_copy)


def slow_size(old: bytes, new: Tensor, was: Tensor) -> Size:
    """Element by element."""
    width, now = new.element_size(), slow_bytes(new)
    cells = [(old[i : i + width], now[i : i + width]) for i in range(0, len(now), width)]
    changed = sum(a != b for a, b in cells)
    if new.dtype in SUB_BYTE:
        return Size(new.numel(), changed)
    pairs = zip(numbers(was), numbers(new), strict=True)
    distances = [abs(complex(b) - complex(a)) for a, b in pairs]
    finite = all(map(math.isfinite, distances))
    return Size(new.numel(), changed, max(distances) if finite else None)


def numbers(tensor: Tensor) -> list[complex]:
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().to(wide).reshape(-1).tolist()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_as_counted_element_by_element(dtype) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        tensor = filled(dtype)
        raw = tensor.view(torch.uint8)
        if dtype not in (torch.bool, *SUB_BYTE):
            raw[:, dtype.itemsize - 1 :: dtype.itemsize] &= 0x3B  # finite, in every format
        reference, old = refer(tensor), slow_bytes(tensor)
        was = raw.clone().view(dtype)
        raw[0, 0] ^= 1
        raw[5, -dtype.itemsize] ^= 1
        expected, found = slow_size(old, tensor, was), size(reference, tensor)
        assert (found.elements, found.changed) == (48, 2)
        assert (found.elements, found.changed) == (expected.elements, expected.changed)
        if expected.max_abs is None:
            assert found.max_abs is None
        else:
            assert found.max_abs == pytest.approx(expected.max_abs, rel=1e-12, abs=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(layout) -> None:
    base = torch.randn(6, 8)
    tensor = LAYOUTS[layout](base)
    reference = refer(tensor)
    base.add_(2)
    found = size(reference, tensor)
    assert (found.elements, found.changed) == (tensor.numel(), tensor.numel())
    assert found.max_abs == (pytest.approx(2, rel=1e-5) if tensor.numel() else None)


def test_lazy_conjugates() -> None:
    base = torch.randn(5, dtype=torch.complex64)
    reference = refer(base.conj())
    base[2] += 3j
    assert size(reference, base.conj()) == Size(5, 1, pytest.approx(3, rel=1e-5))
    assert size(reference, base.conj().resolve_conj()).changed == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_has_no_distance(value) -> None:
    tensor = torch.zeros(4)
    reference = refer(tensor)
    tensor[1] = value
    assert size(reference, tensor) == Size(4, 1, None)


def test_only_bits_differ() -> None:
    tensor = torch.zeros(4)
    reference = refer(tensor)
    assert size(reference, tensor) == Size(4, 0, 0.0)
    tensor[1] = -0.0
    assert size(reference, tensor) == Size(4, 1, 0.0)


def test_without_a_copy_only_the_elements_are_told() -> None:
    tensor = torch.zeros(4)
    assert size(refer(tensor, keep_copy=False), tensor + 1) == Size(4)


@pytest.mark.parametrize(
    "now",
    [
        torch.zeros(5),
        torch.zeros(4, dtype=torch.float64),
        torch.zeros(2, 2),
        Scaled(torch.zeros(4), torch.ones(1)),
    ],
    ids=["longer", "other dtype", "other shape", "other class"],
)
def test_what_cannot_be_compared(now) -> None:
    assert size(refer(torch.zeros(4)), now) == Size(now.numel())


def test_gone_and_empty() -> None:
    assert size(refer(torch.zeros(4)), None) == Size()
    assert size(refer(torch.zeros(0, 4)), torch.zeros(0, 4)) == Size(0, 0)


def test_parameters_are_compared_as_tensors() -> None:
    p = nn.Parameter(torch.zeros(3))
    reference = refer(p)
    with torch.no_grad():
        p[0] = 1.5
    assert size(reference, p) == Size(3, 1, 1.5)
    assert size(reference, p.detach()) == Size(3, 1, 1.5)
    assert p.grad is None
    assert p.requires_grad


@pytest.mark.filterwarnings("ignore")
def test_wrappers_have_no_numbers_of_their_own() -> None:
    weight = torchao_weight("Int8WeightOnlyConfig")
    reference = refer(weight)
    weight.qdata[0, 0] += 1
    assert size(reference, weight) == Size(weight.numel())


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("gaps", [False, True])
def test_unaligned_memory(dtype, gaps) -> None:
    memory = bytearray(os.urandom(24 * dtype.itemsize + 1))
    tensor = torch.frombuffer(memory, dtype=dtype, offset=1).view(4, 6)
    whole = tensor[:, ::2] if gaps else tensor
    assert whole.data_ptr() % dtype.itemsize
    for keep_copy in (True, False):
        reference = refer(whole, keep_copy=keep_copy)
        memory[1] ^= 1
        found = size(reference, whole)
        assert (found.elements, found.changed) == (whole.numel(), 1 if keep_copy else None)
