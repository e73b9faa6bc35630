"""The seal: one bit is enough, casts are told apart from drift, shapes and dtypes are named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import frostline as fl
from frostline.errors import FreezeError, FrozenStateChanged, UnsupportedTensor
from frostline.freezing import sealing
from frostline.freezing.sealing import COPIED_AT_LEAST
from tests.zoo import ZOO


def sealed(tensor: Tensor) -> sealing.Seal:
    return sealing.take({"t": tensor})


def kind(seal: sealing.Seal, tensor: Tensor) -> str | None:
    change = sealing.compare(seal, "t", tensor)
    return change.kind if change is not None else None


DTYPES = [
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]


def flip(tensor: Tensor, bit: int) -> None:
    """Flip one bit of the tensor's memory."""
    raw = tensor.untyped_storage()
    raw[bit // 8] = raw[bit // 8] ^ (1 << bit % 8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bit_anywhere(dtype: torch.dtype) -> None:
    tensor = (torch.arange(9) % 2).to(dtype)
    seal = sealed(tensor)
    assert kind(seal, tensor) is None
    assert kind(seal, tensor.clone()) is None
    # A bool holds one bit an element; other bits of its byte mean nothing that torch promises.
    bits = range(0, tensor.nbytes * 8, 8 if dtype == torch.bool else 5)
    for bit in bits:
        flip(tensor, bit)
        assert kind(seal, tensor) == "value", bit
        flip(tensor, bit)
        assert kind(seal, tensor) is None, bit


@pytest.mark.parametrize(
    ("old", "new"),
    [(0.0, -0.0), (1.0, 1.0 + 2**-23), (float("nan"), 0.0), (0.0, float("inf"))],
    ids=["minus zero", "one ulp", "nan to zero", "zero to inf"],
)
def test_values_near_each_other(old: float, new: float) -> None:
    seal = sealed(torch.tensor([1.0, old]))
    assert kind(seal, torch.tensor([1.0, old])) is None
    assert kind(seal, torch.tensor([1.0, new])) == "value"


def test_two_values_changing_places() -> None:
    tensor = torch.arange(100.0)
    seal = sealed(tensor)
    tensor[[3, 70]] = tensor[[70, 3]]
    assert kind(seal, tensor) == "value"


def test_zeros_are_not_all_alike() -> None:
    assert kind(sealed(torch.zeros(4)), torch.zeros(5)) == "shape"
    assert kind(sealed(torch.zeros(4)), torch.zeros(2, 2)) == "shape"
    assert kind(sealed(torch.zeros(0)), torch.zeros(0, 3)) == "shape"
    assert kind(sealed(torch.zeros(4)), torch.zeros(4)) is None


def test_strides_are_no_content() -> None:
    tensor = torch.randn(4, 6)
    seal = sealed(tensor)
    assert kind(seal, tensor.t().contiguous().t()) is None
    assert kind(seal, tensor.to(memory_format=torch.contiguous_format)) is None
    images = torch.randn(2, 3, 4, 4)
    assert kind(sealed(images), images.to(memory_format=torch.channels_last)) is None


WIDE_AND_NARROW = [
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float64, torch.float32),
    (torch.float64, torch.bfloat16),
    (torch.float64, torch.float16),
]


@pytest.mark.parametrize(("wide", "narrow"), WIDE_AND_NARROW, ids=str)
def test_a_cast_is_reported_and_not_drift(wide: torch.dtype, narrow: torch.dtype) -> None:
    tensor = torch.randn(200, dtype=wide)
    seal = sealed(tensor)
    for cast in (tensor.to(narrow), tensor.to(narrow).to(wide)):
        change = sealing.compare(seal, "t", cast)
        assert change is not None
        assert (change.kind, change.severity) == ("cast", "report")


@pytest.mark.parametrize(("wide", "narrow"), WIDE_AND_NARROW, ids=str)
def test_a_cast_with_one_wrong_value_is_drift(wide: torch.dtype, narrow: torch.dtype) -> None:
    tensor = torch.randn(200, dtype=wide)
    seal = sealed(tensor)
    cast = tensor.to(narrow)
    cast[17] = -cast[17]
    assert kind(seal, cast) == "dtype"
    assert kind(seal, cast.to(wide)) == "value"


@pytest.mark.parametrize(("wide", "narrow"), WIDE_AND_NARROW, ids=str)
def test_a_widening_is_a_cast(wide: torch.dtype, narrow: torch.dtype) -> None:
    tensor = torch.randn(200).to(narrow)
    seal = sealed(tensor)
    assert kind(seal, tensor.to(wide)) == "cast"
    assert kind(seal, tensor.to(wide).to(narrow)) is None
    wrong = tensor.to(wide)
    wrong[3] += 2.0**-20
    assert kind(seal, wrong) == "dtype"


def test_bytes_of_another_meaning_are_no_cast() -> None:
    tensor = torch.randn(8)
    assert kind(sealed(tensor), tensor.view(torch.int32)) == "dtype"


def test_a_rounding_that_came_with_training_is_drift() -> None:
    """All values representable in bfloat16, but not the rounded old ones."""
    tensor = torch.randn(64)
    seal = sealed(tensor)
    assert kind(seal, (tensor + 0.5).bfloat16().float()) == "value"


def test_numbers_of_a_change_against_numpy() -> None:
    tensor = torch.randn(50, dtype=torch.float64)
    seal = sealed(tensor)
    new = tensor.clone()
    new[[4, 9, 30]] += torch.tensor([0.5, -2.0, 1e-9], dtype=torch.float64)
    change = sealing.compare(seal, "t", new)
    assert change is not None
    assert change.changed_elements == int((new.numpy() != tensor.numpy()).sum()) == 3
    assert change.max_abs == abs(new.numpy() - tensor.numpy()).max()


def test_a_change_of_zeros_sign_counts() -> None:
    change = sealing.compare(sealed(torch.zeros(4)), "t", -torch.zeros(4))
    assert change is not None
    assert (change.changed_elements, change.max_abs) == (4, 0.0)


def test_small_tensors_have_numbers_and_large_ones_have_none() -> None:
    small, large = torch.zeros(10), torch.zeros(COPIED_AT_LEAST)
    seal = sealing.take({"small": small, "large": large})
    assert seal.tensors["small"].copy is not None
    assert seal.tensors["large"].copy is None
    large[5] = 1
    change = sealing.compare(seal, "large", large)
    assert change is not None
    assert (change.kind, change.max_abs, change.changed_elements) == ("value", None, None)
    copied = sum(t.copy.nbytes for t in seal.tensors.values() if t.copy is not None)
    assert copied <= max(COPIED_AT_LEAST, 0.01 * sum(t.nbytes for t in seal.tensors.values()))


def test_a_copy_does_not_follow_the_tensor() -> None:
    tensor = torch.zeros(3)
    seal = sealed(tensor)
    tensor += 1
    assert seal.tensors["t"].copy is not None
    assert not seal.tensors["t"].copy.any()


def test_every_seal_has_its_own_key() -> None:
    tensor = torch.randn(10)
    first, second = sealed(tensor), sealed(tensor)
    assert first.key != second.key
    assert first.tensors["t"].checksum != second.tensors["t"].checksum


def test_nbytes() -> None:
    tensors = {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bool)}
    seal = sealing.take(tensors)
    assert [seal.tensors[name].nbytes for name in tensors] == [3 * 5 * 4, 7]


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, device="meta"), torch.eye(3).to_sparse()],
    ids=["meta", "sparse"],
)
def test_no_content_to_seal(tensor: Tensor) -> None:
    with pytest.raises(UnsupportedTensor, match="t"):
        sealing.take({"t": tensor})


# --- through a part ------------------------------------------------------------------------------


def mlp() -> nn.Module:
    return ZOO["mlp_bn1d"].build()


def changes(part: fl.types.FrozenPart) -> list[tuple[str, str, str]]:
    return [(c.name, c.kind, c.severity) for c in part.changes()]


def test_unsealed_says_so() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone", seal=False)
    assert not part.sealed
    assert "part.seal()" in str(part)
    with pytest.raises(FreezeError, match=r'"backbone" is not sealed.*part\.seal\(\)'):
        part.changes()
    part.seal()
    assert part.sealed
    assert part.ok


def test_seal_again_after_a_wanted_load() -> None:
    model, other = mlp(), ZOO["mlp_bn1d"].build(seed=1)
    part = fl.freeze(model, "backbone")
    model.load_state_dict(other.state_dict())
    assert {c.kind for c in part.changes()} == {"value"}
    with pytest.raises(FrozenStateChanged, match=r"If you loaded .* on purpose: part\.seal\(\)"):
        part.assert_unchanged()
    part.seal()
    part.assert_unchanged()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_module_casts_there_and_back(dtype: torch.dtype) -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    floating = {n for n, t in part.tensors.items() if t.is_floating_point()}
    model.to(dtype)
    assert set(changes(part)) == {(n, "cast", "report") for n in floating}
    assert part.ok
    part.assert_unchanged()
    model.float()
    # Narrowing loses bytes; widening loses none, but `to` puts new buffer objects there.
    kinds = {(k, s) for _, k, s in changes(part)}
    exact = dtype == torch.float64
    assert ("cast", "report") in kinds or exact
    assert kinds <= {("replaced" if exact else "cast", "report")} | {("replaced", "report")}
    assert part.ok


def test_drift_after_a_cast_is_drift() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    model.bfloat16()
    with torch.no_grad():
        model.backbone[0].weight[0, 0] += 1
    drift = [c for c in part.changes() if c.severity == "drift"]
    assert [(c.name, c.kind) for c in drift] == [("backbone.0.weight", "dtype")]
    assert not part.ok


def _missing(model: nn.Module) -> None:
    del model.backbone[0].bias
    model.backbone[0].bias = None


def _resized(model: nn.Module) -> None:
    model.backbone[0].weight.data = torch.zeros(3, 3)


def _added(model: nn.Module) -> None:
    model.backbone[0].register_parameter("lora_A", nn.Parameter(torch.zeros(2)))


def _replaced_equal(model: nn.Module) -> None:
    old = model.backbone[0].weight
    model.backbone[0].weight = nn.Parameter(old.detach().clone(), requires_grad=False)


KINDS = {
    "value": (
        lambda m: m.backbone[1].running_mean.add_(1),
        ("backbone.1.running_mean", "value", "drift"),
    ),
    "one counter": (
        lambda m: m.backbone[1].num_batches_tracked.add_(1),
        ("backbone.1.num_batches_tracked", "value", "drift"),
    ),
    "missing": (_missing, ("backbone.0.bias", "missing", "drift")),
    "shape": (_resized, ("backbone.0.weight", "shape", "drift")),
    "added": (_added, ("backbone.0.lora_A", "added", "report")),
    "replaced by an equal one": (
        _replaced_equal,
        ("backbone.0.weight", "replaced", "report"),
    ),
    "requires_grad": (
        lambda m: m.backbone[0].weight.requires_grad_(True),
        ("backbone.0.weight", "requires_grad", "drift"),
    ),
}


@pytest.mark.parametrize(("disturb", "expected"), KINDS.values(), ids=KINDS)
def test_kinds_of_changes(disturb: object, expected: tuple[str, str, str]) -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    disturb(model)
    assert changes(part) == [expected]
    assert part.ok == (expected[2] == "report")


def test_mode_detection() -> None:
    """A norm whose class was taken away follows train() again, and is named."""
    model = mlp()
    part = fl.freeze(model, "backbone")
    model.backbone[1].__class__ = nn.BatchNorm1d
    model.train()
    assert ("backbone.1", "mode", "drift") in changes(part)


def test_drift_comes_first() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    _added(model)
    model.backbone[4].running_var.mul_(2)
    assert [c.severity for c in part.changes()] == ["drift", "report"]


def test_what_is_not_covered_is_not_reported() -> None:
    model = mlp()
    part = fl.freeze(model, "backbone")
    model.head.weight.data += 1
    model.extra = nn.Linear(2, 2)
    assert part.changes() == []
