"""Names through wrappers, aliases by identity, overlaps by bytes; both against brute force."""

from __future__ import annotations

from collections import OrderedDict
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from frostline._names import (
    aliases,
    byte_range,
    canonical,
    join,
    named_modules,
    named_tensors,
    overlapping,
)
from tests.zoo import ZOO

CANONICAL = {
    "layer1.conv.weight": "layer1.conv.weight",
    "module.layer1.weight": "layer1.weight",
    "module.module.layer1.weight": "layer1.weight",
    "module._orig_mod.layer1.weight": "layer1.weight",
    "_orig_mod.module.layer1.weight": "layer1.weight",
    "_fsdp_wrapped_module.block._fsdp_wrapped_module.weight": "block.weight",
    "block._checkpoint_wrapped_module.weight": "block.weight",
    "base_model.model.encoder.q.base_layer.weight": "encoder.q.weight",
    "module.base_model.model.encoder.q.weight": "encoder.q.weight",
    "fc.parametrizations.weight.original": "fc.weight",
    "parametrizations.weight.original": "weight",
    "fc.parametrizations.weight.original0": "fc.weight:0",
    "fc.parametrizations.weight.original1": "fc.weight:1",
    # near misses: names of the user's own that look like a wrapper's
    "module": "module",
    "stem.module.weight": "stem.module.weight",
    "modules.weight": "modules.weight",
    "base_model.encoder.weight": "base_model.encoder.weight",
    "encoder.base_model.model.weight": "encoder.base_model.model.weight",
    "base_layer.weight": "base_layer.weight",
    "base_layers.0.base_layer.weight": "base_layers.0.weight",
    "fc.parametrizations.weight.0._u": "fc.parametrizations.weight.0._u",
    "parametrizations.weight": "parametrizations.weight",
    "original.weight": "original.weight",
    "fc.parametrizations.weight.originals": "fc.parametrizations.weight.originals",
}


@pytest.mark.parametrize(("name", "expected"), CANONICAL.items(), ids=CANONICAL)
def test_canonical(name: str, expected: str) -> None:
    assert canonical(name) == expected
    assert canonical(expected) == expected


@pytest.mark.parametrize(
    ("prefix", "name", "expected"),
    [("", "", ""), ("a", "", "a"), ("", "b", "b"), ("a.b", "c", "a.b.c")],
)
def test_join(prefix: str, name: str, expected: str) -> None:
    assert join(prefix, name) == expected


@pytest.mark.parametrize("name", ZOO)
def test_named_tensors_are_the_state_dict_in_its_order(name: str) -> None:
    model = ZOO[name].build(steps=0)
    persistent = [t for t in named_tensors(model) if t.persistent]
    expected = [(canonical(key), value) for key, value in model.state_dict(keep_vars=True).items()]
    assert [t.name for t in persistent] == [key for key, _ in expected]
    assert all(t.tensor is value for t, (_, value) in zip(persistent, expected, strict=True))


def test_kinds_and_what_no_state_dict_has() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("kept", torch.ones(1))
            self.register_buffer("lost", torch.ones(1), persistent=False)
            self.register_buffer("none", None)
            self.plain = torch.ones(1)
            self.number = 3

    found = {t.name: (t.kind, t.persistent) for t in named_tensors(nn.Sequential(Net()))}
    assert found == {
        "0.weight": ("parameter", True),
        "0.kept": ("buffer", True),
        "0.lost": ("buffer", False),
        "0.plain": ("attribute", False),
    }


def test_names_through_real_wrappers() -> None:
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 3), bn=nn.BatchNorm2d(2)))
    expected = [t.name for t in named_tensors(net)]
    wrapped = torch.compile(nn.DataParallel(net), backend="eager")
    assert [t.name for t in named_tensors(wrapped)] == expected
    assert [name for name, _ in named_modules(wrapped)] == ["", "", "", "conv", "bn"]


def test_aliases_follow_identity_and_not_equality() -> None:
    net = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    net["b"].weight = net["a"].weight
    net["c"].weight = nn.Parameter(net["a"].weight.detach().clone())
    groups = [[t.name for t in group] for group in aliases(named_tensors(net))]
    assert groups == [["a.weight", "b.weight"]]


def test_a_module_at_two_places_is_an_alias_of_itself() -> None:
    shared = nn.Linear(2, 2, bias=False)
    net = nn.ModuleDict({"a": shared, "b": shared})
    assert [[t.name for t in group] for group in aliases(named_tensors(net))] == [
        ["a.weight", "b.weight"]
    ]
    assert [name for name, _ in named_modules(net)] == ["", "a"]


def test_aliases_of_the_zoo() -> None:
    groups = aliases(named_tensors(ZOO["t5"].build(steps=0)))
    assert [{t.name for t in group} for group in groups] == [
        {
            "shared.weight",
            "encoder.embed_tokens.weight",
            "decoder.embed_tokens.weight",
            "lm_head.weight",
        }
    ]
    assert aliases(named_tensors(ZOO["resnet18"].build(steps=0))) == []


# --- overlap by bytes ----------------------------------------------------------------------------

BUFFER = 24


@st.composite
def views(draw: st.DrawFn) -> tuple[int, int, int]:
    """Start, length and stride of a view of a flat buffer."""
    stride = draw(st.integers(1, 3))
    length = draw(st.integers(0, 4))
    start = draw(st.integers(0, BUFFER - max(1, (length - 1) * stride + 1)))
    return start, length, stride


def _make(specs: list[tuple[int, int, int]], flat: Tensor) -> dict[str, Tensor]:
    return {f"{i}": flat.as_strided((n,), (k,), s) for i, (s, n, k) in enumerate(specs)}


@settings(deadline=None)
@given(st.lists(views(), max_size=5), st.lists(views(), max_size=5))
def test_overlapping_against_every_pair(
    left: list[tuple[int, int, int]], right: list[tuple[int, int, int]]
) -> None:
    flat = torch.zeros(BUFFER)
    a, b = _make(left, flat), _make(right, flat)
    expected = {(i, j) for (i, x), (j, y) in product(a.items(), b.items()) if _span(x) & _span(y)}
    found = overlapping(a, b)
    assert len(found) == len(set(found))
    assert set(found) == expected


def _span(tensor: Tensor) -> set[int]:
    """The elements of the buffer from the first to the last that the view reaches."""
    if tensor.numel() == 0:
        return set()
    first = tensor.storage_offset()
    return set(range(first, first + (tensor.numel() - 1) * tensor.stride(0) + 1))


def test_the_same_object_on_both_sides_is_no_overlap() -> None:
    flat = torch.zeros(4)
    assert overlapping({"a": flat}, {"b": flat}) == []
    assert overlapping({"a": flat}, {"b": flat.view(2, 2)}) == [("a", "b")]


def test_overlap_across_dtypes() -> None:
    flat = torch.zeros(4, dtype=torch.float32)
    raw = flat.view(torch.uint8)
    assert overlapping({"a": flat[1:2]}, {"b": raw[:4], "c": raw[7:8]}) == [("a", "c")]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(0),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
    ],
    ids=["empty", "meta", "sparse"],
)
def test_no_memory_no_range(tensor: Tensor) -> None:
    assert byte_range(tensor) is None
    assert overlapping({"a": tensor}, {"b": torch.zeros(2)}) == []


def test_byte_range_spans_gaps() -> None:
    flat = torch.zeros(10)
    device, start, end = byte_range(flat[2:9:3])
    assert (device, start - flat.data_ptr(), end - start) == ("cpu", 8, 7 * 4)
