"""Resume: a manifest in anyone's checkpoint freezes and verifies a fresh model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from frostline.errors import FrozenStateChanged, SelectionError
from frostline.manifests import Manifest
from tests.everything import contents, everything, forget_other_tests
from tests.zoo import ZOO


def _checkpoint(path: Path, name: str, **switches: Any) -> fl.types.FrozenPart:
    """Freeze, train, and save what everyone saves, with the manifest beside it."""
    entry = ZOO[name]
    model = entry.build()
    part = fl.freeze(model, entry.backbone, **switches)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    entry.loss(model.train(), entry.batch()).backward()
    optimizer.step()
    torch.save(
        {"model": model.state_dict(), "frozen": fl.manifest(part).to_dict()}, path / "run.pt"
    )
    return part


def _load(path: Path) -> dict[str, Any]:
    return torch.load(path / "run.pt", weights_only=True)


SWITCHES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "batch": {"stats": "batch"},
    "update": {"stats": "update"},
    "follow": {"mode": "follow"},
    "no params": {"params": False},
    "exclude": {"exclude": "backbone.4"},
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_resume(tmp_path: Path, switches: dict[str, Any]) -> None:
    _checkpoint(tmp_path, "mlp_bn1d", **switches)
    saved = _load(tmp_path)
    model = ZOO["mlp_bn1d"].build(seed=5)
    model.load_state_dict(saved["model"])
    part = fl.freeze(model, Manifest.from_dict(saved["frozen"]))

    reference = ZOO["mlp_bn1d"].build(seed=5)
    again = fl.freeze(reference, "backbone", **switches)
    expected = {k: v for k, v in again.switches.items() if k not in ("select", "exclude")}
    assert {k: part.switches[k] for k in expected} == expected
    assert part.switches["select"] == '"backbone"'
    assert set(part.tensors) == set(again.tensors)
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in reference.parameters()
    ]
    for mode in (True, False):
        model.train(mode)
        reference.train(mode)
        assert [m.training for m in model.modules()] == [m.training for m in reference.modules()]
    assert part.ok


@pytest.mark.parametrize("name", ["resnet18", "gpt2", "lstm", "wav2vec2"])
def test_resume_of_the_zoo(tmp_path: Path, name: str) -> None:
    # The same model, not another: its part is still there while the fresh one is held.
    old = _checkpoint(tmp_path, name)
    saved = _load(tmp_path)
    entry = ZOO[name]
    model = entry.build(seed=5, steps=0)
    model.load_state_dict(saved["model"])
    part = fl.freeze(model, Manifest.from_dict(saved["frozen"]))
    before = contents(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    entry.loss(model.train(), entry.batch()).backward()
    optimizer.step()
    after = contents(model)
    assert part.ok
    assert not {n for n in before if before[n] != after[n]} & set(part.tensors)
    assert old is not part


def test_a_manifest_of_a_resumed_part_is_the_same(tmp_path: Path) -> None:
    _checkpoint(tmp_path, "mlp_bn1d", exclude="backbone.4")
    saved = _load(tmp_path)
    model = ZOO["mlp_bn1d"].build(seed=5)
    model.load_state_dict(saved["model"])
    part = fl.freeze(model, Manifest.from_dict(saved["frozen"]))
    assert fl.manifest(part).root == saved["frozen"]["root"]
    assert fl.manifest(part).entries == Manifest.from_dict(saved["frozen"]).entries
    twice = ZOO["mlp_bn1d"].build(seed=6)
    twice.load_state_dict(saved["model"])
    assert fl.freeze(twice, fl.manifest(part)).switches == part.switches


def _one_bit(model: nn.Module) -> None:
    model.backbone[1].running_var.data[3] *= 1 + 2**-22


def _cast(model: nn.Module) -> None:
    model.bfloat16().float()


WRONG: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "one bit of one statistic": (_one_bit, "backbone.1.running_var"),
    "nothing was loaded": (
        lambda m: m.load_state_dict(ZOO["mlp_bn1d"].build(seed=5).state_dict()),
        "backbone.0.weight",
    ),
    "a counter": (lambda m: m.backbone[4].num_batches_tracked.add_(1), "num_batches_tracked"),
    "rounded weights": (_cast, "backbone.0.weight"),
    "another dtype": (lambda m: m.double(), "backbone.0.weight"),
}


@pytest.mark.parametrize(("spoil", "names"), WRONG.values(), ids=WRONG)
def test_other_weights_freeze_nothing(
    tmp_path: Path, spoil: Callable[[nn.Module], Any], names: str
) -> None:
    _checkpoint(tmp_path, "mlp_bn1d")
    saved = _load(tmp_path)
    manifest = Manifest.from_dict(saved["frozen"])
    model = ZOO["mlp_bn1d"].build(seed=5)
    model.load_state_dict(saved["model"])
    spoil(model)
    forget_other_tests()
    before = everything(model)
    with pytest.raises(FrozenStateChanged, match=names) as caught:
        fl.freeze(model, manifest)
    assert "nothing was frozen" in str(caught.value)
    assert "Load the weights first" in str(caught.value)
    assert everything(model) == before
    assert fl.parts(model) == []


def test_a_change_outside_of_the_part_is_nobodys_business(tmp_path: Path) -> None:
    _checkpoint(tmp_path, "mlp_bn1d")
    saved = _load(tmp_path)
    model = ZOO["mlp_bn1d"].build(seed=5)
    model.load_state_dict(saved["model"])
    model.head.weight.data += 1
    assert fl.freeze(model, Manifest.from_dict(saved["frozen"])).ok


def test_switches_that_contradict_the_manifest(tmp_path: Path) -> None:
    part = _checkpoint(tmp_path, "mlp_bn1d", stats="batch")
    manifest = Manifest.from_dict(_load(tmp_path)["frozen"])
    model = ZOO["mlp_bn1d"].build()
    with pytest.raises(SelectionError, match=r"stats='update' contradicts the manifest.*'batch'"):
        fl.freeze(model, manifest, stats="update")
    with pytest.raises(SelectionError, match=r"params=False contradicts the manifest"):
        fl.freeze(model, manifest, params=False)
    assert fl.parts(model) == []
    assert fl.freeze(model, manifest, stats="batch").switches["stats"] == "batch"
    assert part is not None


def test_another_model(tmp_path: Path) -> None:
    _checkpoint(tmp_path, "mlp_bn1d")
    manifest = Manifest.from_dict(_load(tmp_path)["frozen"])
    with pytest.raises(SelectionError, match=r"names of the manifest are not in this Recurrent"):
        fl.freeze(ZOO["lstm"].build(steps=0), manifest)


def test_a_manifest_without_switches_selects_tensors_only() -> None:
    model = ZOO["mlp_bn1d"].build()
    part = fl.freeze(model, fl.manifest(model, "backbone.0"))
    assert set(part.tensors) == {"backbone.0.weight", "backbone.0.bias"}
    assert part.ok
