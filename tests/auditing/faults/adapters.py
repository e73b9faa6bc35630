"""Adapters, merging, precision: F58 to F65."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import frostline as fl
from tests.auditing.cases import Case
from tests.auditing.faults.fault import adamw, case, fault, lived, running, trainable
from tests.auditing.faults.nets import classes, mlp, vectors
from tests.zoo import ZOO, live, seeded


def _lora(model: nn.Module, targets: list[str], **config: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    with seeded(5):
        return get_peft_model(model, LoraConfig(r=2, target_modules=targets, **config)).train()


def _lora_over_norms() -> nn.Module:
    return _lora(lived(ZOO["mlp_bn1d"]), ["backbone.0", "backbone.3"])


@fault(58, "peft#1732")
def adapters_over_norms_that_move() -> Case:
    model = _lora_over_norms()
    return running(ZOO["mlp_bn1d"], model, "101", "403", optimizer=adamw(trainable(model)))


@fault(58, "peft#1734")
def adapters_over_norms_in_eval() -> Case:
    model = _lora_over_norms()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    return running(ZOO["mlp_bn1d"], model, "102", "403", optimizer=adamw(trainable(model)))


@fault(59, "peft#1626")
def principal_components_taken_out_of_the_base() -> Case:
    model = _lora(mlp(), ["middle.0", "middle.2"], init_lora_weights="pissa")
    return case(model, vectors(), classes, "404", optimizer=adamw(trainable(model)))


@fault(59, "peft#1828")
def base_rewritten_by_an_orthonormal_start() -> Case:
    model = _lora(mlp(), ["middle.0", "middle.2"], init_lora_weights="olora")
    return case(model, vectors(), classes, "404", optimizer=adamw(trainable(model)))


@fault(60, "trl#6688")
def merged_and_unmerged() -> Case:
    with torch.no_grad():  # an adapter that has learned something
        model = _lora(mlp(), ["middle.0", "middle.2"], init_lora_weights=False)
    fl.freeze(model, fl.FLAGGED, mode="follow")
    for _ in range(20):
        model.merge_adapter()
        model.unmerge_adapter()
    return case(model, vectors(), classes, "402", optimizer=adamw(trainable(model)))


@fault(61, "peft's prepare_model_for_kbit_training, called last")
def adapters_frozen_with_the_base() -> Case:
    from peft import prepare_model_for_kbit_training

    model = _lora(mlp(), ["middle.0"])
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return case(model, vectors(), classes, "006", optimizer=adamw(model.parameters()))


@fault(63, "timm's ModelEmaV2")
def average_of_a_frozen_part() -> Case:
    model = mlp()
    fl.freeze(model, "middle")
    average = copy.deepcopy(model)
    for _ in range(200):
        for slow, new in zip(
            average.state_dict().values(), model.state_dict().values(), strict=True
        ):
            slow.copy_(0.9 * slow + (1.0 - 0.9) * new)
    return case(average, vectors(), classes, "402")


def _sum(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().sum()


@fault(65, "peft#503")
def copy_trains_beside_the_base() -> Case:
    with seeded(7):
        base = live(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)))
    model = _lora(base, ["0"], modules_to_save=["2"])
    return case(model, vectors(), _sum, "303", optimizer=adamw(trainable(model)))
