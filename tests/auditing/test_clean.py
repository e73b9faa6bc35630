"""Models that are frozen the right way give no finding of warning or above, read and measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import frostline as fl
from tests.zoo import BREADTH, ZOO, Entry, fresh
from tests.zoo_transformers import bert

LARGE = {"resnet18", "mobilenetv3", "levit", "convnext", "wav2vec2", "t5"}
LARGE |= {"hf_resnet", "vit_tiny", "gru"}
FAST = [name for name in ZOO if name not in LARGE]
SetUp = tuple[nn.Module, Entry, torch.optim.Optimizer | None]


def serious(model: nn.Module, entry: Entry, **given: Any) -> list[str]:
    """Findings of warning or above, read without a batch and measured with it."""
    batch = {"batch": entry.batch(), "compute_loss": entry.loss}
    found = []
    for more in ({}, batch):
        for finding in fl.audit(model, **given, **more).findings:
            if finding.severity != "info":
                found.append(f"{finding.code} {finding.where}: {finding.message}")
    return found


def backbone_held(entry: Entry) -> SetUp:
    model = fresh(entry).train()
    fl.freeze(model, entry.backbone)
    return model, entry, torch.optim.AdamW(fl.param_groups(model, 1e-3))


def flags_made_to_hold(entry: Entry) -> SetUp:
    """The freeze that a script has already, and one line after it."""
    model = fresh(entry).train()
    part = fl.freeze(model, entry.backbone, params=True, stats="hold", mode="follow")
    assert part.tensors
    trainable = [p for p in model.parameters() if p.requires_grad]
    return model, entry, torch.optim.SGD(trainable, lr=0.01, momentum=0.9)


def teacher(entry: Entry) -> SetUp:
    """All of it frozen, and nothing that trains."""
    model = fresh(entry)
    fl.freeze(model)
    return model, entry, None


WAYS: list[Callable[[Entry], SetUp]] = [backbone_held, flags_made_to_hold, teacher]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", FAST)
def test_the_zoo_frozen_well(name: str, way: Callable[[Entry], SetUp]) -> None:
    check(way, ZOO[name])


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("name", sorted(LARGE) + sorted(BREADTH))
def test_the_rest_of_the_zoo_frozen_well(name: str, way: Callable[[Entry], SetUp]) -> None:
    check(way, {**ZOO, **BREADTH}[name])


def check(way: Callable[[Entry], SetUp], entry: Entry) -> None:
    model, entry, optimizer = way(entry)
    model.train()
    given = {"optimizer": optimizer} if optimizer is not None else {}
    if optimizer is None:  # a teacher has no loss
        assert [f for f in fl.audit(model).findings if f.severity != "info"] == []
        assert fl.audit(model, batch=entry.batch()).worth("warning") == []
        return
    assert serious(model, entry, **given) == []


def test_adapters_over_a_base_that_follows() -> None:
    from peft import LoraConfig, get_peft_model

    entry = ZOO["mlp_bn1d"]
    model = get_peft_model(fresh(entry), LoraConfig(r=2, target_modules=["backbone.0"]))
    fl.freeze(model, fl.FLAGGED, mode="follow")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    assert serious(model.train(), entry, optimizer=optimizer) == []


def test_the_same_without_the_freeze_is_not_clean() -> None:
    from peft import LoraConfig, get_peft_model

    entry = ZOO["mlp_bn1d"]
    model = get_peft_model(fresh(entry), LoraConfig(r=2, target_modules=["backbone.0"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    assert serious(model.train(), entry, optimizer=optimizer)


def test_a_model_without_norms_frozen_by_flags_alone() -> None:
    model = bert()
    model.bert.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.classifier.parameters())
    assert serious(model.train(), ZOO["bert"], optimizer=optimizer) == []
