"""Cases of FRZ404, adapter-rewrites-base."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.auditing.cases import Case
from tests.auditing.rules.frz303 import adapted

_ONLY = frozenset({"FRZ404"})


def _adapted(**config: Any) -> nn.Module:
    return adapted(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), "0", **config)


def bad_pissa() -> Case:
    return Case(_adapted(init_lora_weights="pissa"), codes=_ONLY)


def bad_pissa_by_iteration() -> Case:
    return Case(_adapted(init_lora_weights="pissa_niter_4"), codes=_ONLY)


def bad_olora() -> Case:
    return Case(_adapted(init_lora_weights="olora"), codes=_ONLY)


def bad_second_adapter_of_a_model() -> Case:
    from peft import LoraConfig

    model = _adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["0"], init_lora_weights="olora"))
    return Case(model, codes=_ONLY)


def good_default() -> Case:
    return Case(_adapted())


def good_gaussian() -> Case:
    return Case(_adapted(init_lora_weights="gaussian"))


def good_orthogonal_which_leaves_the_base() -> Case:
    return Case(_adapted(init_lora_weights="orthogonal"))
