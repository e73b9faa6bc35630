"""Manifests: what they cover, that every source agrees, and that nothing malformed is read."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from frostline.errors import ManifestError, SelectionError, UnsupportedTensor
from frostline.manifests import Entry, Manifest, digest, manifest
from tests import manifest_reference as reference
from tests.test_digests import VECTORS, from_vector

SCHEMA = Path(__file__).parents[1] / "docs" / "formats" / "manifest-v1.schema.json"
SWITCHES = {
    "select": '"backbone"',
    "exclude": None,
    "params": True,
    "stats": "hold",
    "mode": "eval",
    "modules": ["backbone", "backbone.1"],
}


def network() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)
    )
    net(torch.randn(8, 1, 8, 8))  # statistics and a counter that are not the initial ones
    return net


@dataclass
class Part:
    """The shape of a frozen part."""

    tensors: Mapping[str, Tensor]
    switches: dict[str, Any] = field(default_factory=lambda: dict(SWITCHES))


# What is covered


def test_covers_what_the_state_dict_covers() -> None:
    net = network()
    net.register_buffer("scratch", torch.ones(2), persistent=False)
    net.register_buffer("nothing", None)
    found = manifest(net)
    assert list(found.entries) == list(net.state_dict())
    assert "1.num_batches_tracked" in found.entries
    for name, tensor in net.state_dict().items():
        entry = found.entries[name]
        assert entry.digest == reference.dense_digest(tensor.numpy())
        assert (entry.dtype, entry.shape) == (str(tensor.dtype)[6:], tuple(tensor.shape))
    before = found.root
    net.scratch += 1
    assert manifest(net).root == before
    net[1].running_mean[2] += 1e-6
    assert manifest(net).root != before


def test_root_is_that_of_the_reference_and_of_the_vectors() -> None:
    found = manifest(network())
    assert found.root == reference.root(found.to_dict()["entries"])
    tensors = {
        vector["name"]: from_vector(vector["description"], bytes.fromhex(vector["bytes"]))
        for vector in VECTORS["tensors"]
    }
    assert manifest(tensors).root == VECTORS["root"]
    assert [e["digest"] for e in manifest(tensors).to_dict()["entries"]] == [
        vector["digest"] for vector in VECTORS["tensors"]
    ]


def test_model_state_dict_and_files_agree(tmp_path: Path) -> None:
    net = network()
    expected = digest(net)
    assert digest(net.state_dict()) == expected
    safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    assert digest(safetensors.torch.load_file(tmp_path / "model.safetensors")) == expected
    torch.save(net.state_dict(), tmp_path / "model.pt")
    assert digest(torch.load(tmp_path / "model.pt", weights_only=True, mmap=True)) == expected
    assert digest(copy.deepcopy(net)) == expected
    assert digest(net.to(memory_format=torch.channels_last)) == expected
    assert digest(net.eval().requires_grad_(False)) == expected


def test_order_of_the_source_does_not_matter_to_the_root() -> None:
    state = network().state_dict()
    backwards = dict(reversed(state.items()))
    assert digest(backwards) == digest(state)
    assert list(manifest(backwards).entries) == list(backwards)
    assert manifest(backwards) == manifest(state)


def test_names_are_bound_by_the_root() -> None:
    a, b = torch.randn(2, 3)
    assert digest({"a": a, "b": b}) != digest({"a": b, "b": a})
    assert digest({"a": a}) != digest({"b": a})


def test_wrappers_do_not_show() -> None:
    net = network()
    expected = manifest(net)
    assert manifest(torch.compile(net, backend="eager")) == expected
    assert manifest(nn.DataParallel(net)) == expected
    assert manifest({f"module._orig_mod.{k}": v for k, v in net.state_dict().items()}) == expected


def test_parametrised_weight_has_its_own_name() -> None:
    net = nn.Sequential(nn.Linear(3, 3))
    parametrizations.weight_norm(net[0])
    assert list(manifest(net).entries) == ["0.bias", "0.weight:0", "0.weight:1"]


def test_tied_tensors_are_listed_under_each_name() -> None:
    net = nn.ModuleDict({"embed": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    net["head"].weight = net["embed"].weight
    found = manifest(net)
    assert list(found.entries) == ["embed.weight", "head.weight"]
    assert len(set(found.entries.values())) == 1
    assert digest(net) == digest({k: v.clone() for k, v in net.state_dict().items()})


def test_one_name_twice_after_stripping_is_an_error() -> None:
    with pytest.raises(ManifestError, match=r"'a' is there twice, as 'a' and as 'module\.a'"):
        manifest({"a": torch.ones(1), "module.a": torch.ones(1)})


@pytest.mark.parametrize("select", ["1", "0.*", "**.running_*", re.compile(r"4\.bias"), ["0", "4"]])
def test_selection_is_the_same_on_model_and_names(select: Any) -> None:
    net = network()
    found = manifest(net, select)
    assert found == manifest(net.state_dict(), select) == manifest(Part(net.state_dict()), select)
    assert 0 < len(found.entries) < len(net.state_dict())
    assert digest(net, select) == found.root


def test_selection_by_module_and_type() -> None:
    net = network()
    assert manifest(net, net[1]) == manifest(net, nn.BatchNorm2d) == manifest(net, "1")
    assert manifest(net, manifest(net, "1")) == manifest(net, "1")


@pytest.mark.parametrize(
    ("source", "select", "error"),
    [
        (nn.ReLU(), None, ManifestError),
        ({}, None, ManifestError),
        (Part({}), None, ManifestError),
        (network(), "1.wieght", SelectionError),
        (network().state_dict(), "backbone", SelectionError),
        (network(), nn.ReLU, ManifestError),  # matches, and holds no tensor
    ],
)
def test_nothing_is_never_success(source: Any, select: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        manifest(source, select)
    with pytest.raises(ManifestError):
        Manifest({})


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"a": torch.ones(1), "b._extra_state": b"x"}, r"b\._extra_state: a bytes, expected"),
        ({"": torch.ones(1)}, "a name that is not empty"),
        ({3: torch.ones(1)}, "3: expected a name"),
        ({"\ud800": torch.ones(1)}, "UTF-8"),
        ([torch.ones(1)], "cannot list the tensors of a list"),
        ("model.safetensors", "For a file, load its state dict first"),
    ],
)
def test_bad_source_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        manifest(source)


def test_unreadable_tensor_is_refused_by_its_full_name() -> None:
    with pytest.raises(UnsupportedTensor, match=r"^1\.weight: on the meta device"):
        manifest(nn.Sequential(nn.ReLU(), nn.Linear(2, 2, device="meta")))


# Parts


def test_part_carries_its_switches() -> None:
    state = network().state_dict()
    found = manifest(Part(state))
    assert found.switches == SWITCHES
    assert found.root == digest(state)
    assert found != manifest(state)
    assert Manifest.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    assert found.member_modules == ["backbone", "backbone.1"]
    assert found.member_tensors == list(state)
    assert manifest(state).member_modules == []
    assert manifest(Part(state), "1").switches is None


def test_part_without_module_names() -> None:
    switches = {key: value for key, value in SWITCHES.items() if key != "modules"}
    assert manifest(Part({"a": torch.ones(1)}, switches)).member_modules == []


# Reading back


def test_round_trips(tmp_path: Path) -> None:
    found = manifest(Part({"Wörter.\U0001f9ca": torch.ones(2, 0), **network().state_dict()}))
    assert Manifest.from_dict(found.to_dict()) == found
    found.save(tmp_path / "m.json")
    read = Manifest.load(tmp_path / "m.json")
    assert read == found
    assert list(read.entries) == list(found.entries)
    assert pickle.loads(pickle.dumps(found)) == copy.deepcopy(found) == found
    assert len({found, read}) == 1
    torch.save({"frozen": found.to_dict()}, tmp_path / "checkpoint.pt")
    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert Manifest.from_dict(loaded["frozen"]) == found


def test_save_replaces_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    first, second = manifest({"a": torch.ones(1)}), manifest({"a": torch.zeros(1)})
    first.save(path)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            second.save(path)
    assert Manifest.load(path) == first
    with path.open() as reader:  # who has the old file open goes on reading the old manifest
        second.save(path)
        assert Manifest.from_dict(json.load(reader)) == first
    assert Manifest.load(path) == second
    assert [p.name for p in tmp_path.iterdir()] == ["m.json"]


def edited(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    tensors = {"a": torch.ones(2, 3), "b": torch.zeros(1)}
    data = copy.deepcopy(manifest(Part(tensors)).to_dict())
    change(data)
    return data


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """Write the last argument at the place that the others name."""

    def change(data: Any) -> None:
        for step in path[:-2]:
            data = data[step]
        data[path[-2]] = path[-1]

    return change


GOOD = "blake3:" + "0" * 64
MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown version": (put("version", 2), r"^version: expected 1, got 2"),
    "version of other type": (put("version", True), r"^version: expected 1, got True"),
    "version as float": (put("version", 1.0), r"^version: expected 1, got 1\.0"),
    "other format": (put("format", "x"), r"^format: expected 'frostline-manifest', got 'x'"),
    "other algorithm": (put("algorithm", "sha256"), r"^algorithm: expected 'blake3', got 'sha256'"),
    "no root": (lambda d: d.pop("root"), r"^manifest: 'root' is missing"),
    "unknown field": (put("extra", 1), r"^manifest: unknown field 'extra'"),
    "root of others": (put("root", GOOD), r"^root: expected blake3:.* over the entries"),
    "upper-case digest": (
        lambda d: d["entries"][1].update(digest=d["entries"][1]["digest"].upper()),
        r"^entries\[1\] \(b\)\.digest: expected 'blake3:' and 64 lower-case",
    ),
    "truncated digest": (
        lambda d: d["entries"][0].update(digest=d["entries"][0]["digest"][:-1]),
        r"^entries\[0\] \(a\)\.digest",
    ),
    "digest with a line feed": (put("entries", 0, "digest", GOOD + "\n"), r"\.digest: expected"),
    "unknown digest algorithm": (
        put("entries", 0, "digest", "sha256:" + "0" * 64),
        r"^entries\[0\] \(a\)\.digest: expected 'blake3:'",
    ),
    "digest of other type": (put("entries", 0, "digest", 7), r"\(a\)\.digest: expected"),
    "name twice": (put("entries", 1, "name", "a"), r"^entries\[1\]\.name: 'a' is there twice"),
    "empty name": (put("entries", 1, "name", ""), r"^entries\[1\]\.name: expected a name"),
    "name of other type": (put("entries", 1, "name", None), r"^entries\[1\]\.name"),
    "lone surrogate": (put("entries", 1, "name", "\ud800"), r"^entries\[1\]\.name: .*UTF-8"),
    "zero entries": (put("entries", []), r"^entries: expected a list of at least one"),
    "entries as mapping": (put("entries", {"a": 1}), r"^entries: expected a list"),
    "entry as list": (put("entries", 0, []), r"^entries\[0\]: expected an object"),
    "entry without shape": (lambda d: d["entries"][0].pop("shape"), r"\[0\]: 'shape' is missing"),
    "unknown entry field": (put("entries", 0, "device", "cpu"), r"\[0\]: unknown field 'device'"),
    "negative size": (put("entries", 0, "shape", [-1]), r"\(a\)\.shape: expected a list of sizes"),
    "size as float": (put("entries", 0, "shape", [2.0, 3]), r"\(a\)\.shape"),
    "size as bool": (put("entries", 0, "shape", [True]), r"\(a\)\.shape"),
    "shape as text": (put("entries", 0, "shape", "23"), r"\(a\)\.shape"),
    "dtype with prefix": (put("entries", 0, "dtype", "torch.float32"), r"\(a\)\.dtype"),
    "dtype of other type": (put("entries", 0, "dtype", 3), r"\(a\)\.dtype"),
    "another shape": (put("entries", 0, "shape", [3, 2]), r"^root: expected"),
    "another name": (put("entries", 0, "name", "c"), r"^root: expected"),
    "unknown switch": (put("switches", "dropout", 1), r"^switches: unknown field 'dropout'"),
    "unknown stats": (put("switches", "stats", "keep"), r"^switches\.stats: expected one of"),
    "unhashable mode": (put("switches", "mode", []), r"^switches\.mode: expected one of"),
    "params as number": (
        put("switches", "params", 1),
        r"^switches\.params: expected true or false",
    ),
    "select as null": (put("switches", "select", None), r"^switches\.select: expected a text"),
    "exclude as list": (put("switches", "exclude", []), r"^switches\.exclude"),
    "modules as text": (put("switches", "modules", "ab"), r"^switches\.modules"),
    "switches as list": (put("switches", [1]), r"^switches: expected an object"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_is_refused_with_the_place(case: str, tmp_path: Path) -> None:
    change, message = MALFORMED[case]
    assert Manifest.from_dict(edited(lambda data: None)).entries  # unedited it is fine
    data = edited(change)
    with pytest.raises(ManifestError, match=message):
        Manifest.from_dict(data)
    path = tmp_path / "m.json"
    path.write_text(json.dumps(data))
    with pytest.raises(ManifestError, match=re.escape(str(path))):
        Manifest.load(path)


@pytest.mark.parametrize("data", [None, [], "text", 3])
def test_what_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(ManifestError, match=r"^manifest: expected an object"):
        Manifest.from_dict(data)


def test_removed_entry_is_noticed() -> None:
    with pytest.raises(ManifestError, match=r"^root: expected"):
        Manifest.from_dict(edited(lambda data: data["entries"].pop()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": NaN}',
        b'{"format": "frostline-manifest", "format": "frostline-manifest"}',
    ],
    ids=["empty", "cut", "not UTF-8", "deep", "NaN", "key twice"],
)
def test_hostile_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=r"m\.json: "):
        Manifest.load(path)


def test_key_twice_is_noticed_though_json_would_take_the_last(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    manifest({"a": torch.ones(1)}).save(path)
    text = path.read_text().replace('"version": 1', '"version": 1, "version": 1')
    assert json.loads(text) == json.loads(path.read_text())
    path.write_text(text)
    with pytest.raises(ManifestError, match="key 'version' is there twice"):
        Manifest.load(path)


def test_missing_file_stays_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path / "none.json")


def test_schema_accepts_ours_and_refuses_what_it_can() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    assert validator.is_valid(manifest(network()).to_dict())
    assert validator.is_valid(edited(lambda data: None))
    # Beyond any schema: uniqueness, the root, and 1.0, which JSON Schema takes for an integer.
    beyond = {"version as float", "size as float", "root of others", "name twice"}
    beyond |= {"another shape", "another name", "lone surrogate", "digest with a line feed"}
    for case, (change, _) in MALFORMED.items():
        assert case in beyond or not validator.is_valid(edited(change)), case


# Comparing


def test_compare_names_each_kind() -> None:
    shared = {"same": torch.ones(3), "counter": torch.tensor(3)}
    old = manifest(
        {
            **shared,
            "value": torch.ones(2),
            "dtype": torch.ones(2),
            "shape": torch.ones(2, 3),
            "gone": torch.full((4,), 7.0),
            "before": torch.arange(5),
        }
    )
    new = manifest(
        {
            **shared,
            "value": torch.tensor([1.0, 1.0000001]),
            "dtype": torch.ones(2).bfloat16(),
            "shape": torch.ones(3, 2),
            "after": torch.arange(5),
            "extra": torch.zeros(4),
        }
    )
    kinds = {d.name: d.kind for d in old.compare(new)}
    assert kinds == {
        "value": "value",
        "dtype": "dtype",
        "shape": "shape",
        "gone": "missing",
        "before": "renamed",
        "extra": "added",
    }
    by_name = {d.name: d for d in old.compare(new)}
    assert (by_name["before"].expected, by_name["before"].found) == ("before", "after")
    assert (by_name["dtype"].expected, by_name["dtype"].found) == ("float32", "bfloat16")
    assert (by_name["shape"].expected, by_name["shape"].found) == ("(2, 3)", "(3, 2)")
    assert by_name["value"].expected == old.entries["value"].digest
    assert by_name["extra"].to_dict()["expected"] is None
    assert str(by_name["value"]).endswith(f"got {new.entries['value'].digest[:15]}…")
    assert all(max(map(len, str(d).splitlines())) <= 80 for d in by_name.values())
    assert old.compare(old) == []


def test_renaming_pairs_equal_content_once() -> None:
    zeros = torch.zeros(2)
    old = manifest({"a": zeros, "b": zeros, "c": zeros})
    new = manifest({"x": zeros, "y": zeros})
    assert [(d.name, d.kind, d.found) for d in old.compare(new)] == [
        ("a", "renamed", "x"),
        ("b", "renamed", "y"),
        ("c", "missing", None),
    ]


def test_batch_norm_drift_is_found_by_name() -> None:
    net = network()
    before = manifest(net)
    net.requires_grad_(False)
    net(torch.randn(4, 1, 8, 8))
    assert [(d.name, d.kind) for d in before.compare(manifest(net))] == [
        ("1.running_mean", "value"),
        ("1.running_var", "value"),
        ("1.num_batches_tracked", "value"),
    ]


# Looking at it


def test_prints_within_80_columns() -> None:
    names = [f"encoder.layers.{i}.self_attention.q_proj.lora_A.default.weight" for i in range(30)]
    found = manifest({name: torch.zeros(1, 1000, 1000, 10)[:, :0] for name in names})
    text = str(found)
    assert max(map(len, text.splitlines())) <= 80
    assert found.root in text
    assert "30 tensors" in text
    assert "10 more" in text
    assert "and" not in str(manifest({"a": torch.ones(2)})).splitlines()[-1]
    assert "scalar" in str(manifest({"a": torch.tensor(1)}))
    assert repr(found) == f"<Manifest of 30 tensors, {found.root[:15]}>"


def test_html_is_escaped() -> None:
    html = manifest({"<b>": torch.ones(1)})._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html


def test_is_no_truth_value() -> None:
    with pytest.raises(TypeError, match=r"a Manifest is not a truth value; .*compare"):
        bool(manifest({"a": torch.ones(1)}))


def test_equality_sees_every_field() -> None:
    entry = Entry("float32", (2,), GOOD)
    base = Manifest({"a": entry})
    assert base == Manifest({"a": Entry("float32", (2,), GOOD)})
    others = [
        Manifest({"b": entry}),
        Manifest({"a": Entry("int32", (2,), GOOD)}),
        Manifest({"a": Entry("float32", (3,), GOOD)}),
        Manifest({"a": Entry("float32", (2,), GOOD[:-1] + "1")}),
        Manifest({"a": entry}, SWITCHES),
    ]
    assert all(base != other for other in others)
