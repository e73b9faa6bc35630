"""Cases of FRZ303, copy-trains-beside-base."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from tests.auditing.cases import Case
from tests.zoo import ZOO

_ONLY = frozenset({"FRZ303"})


class ModulesToSaveWrapper(nn.Module):
    """Has the name and is not it."""

    def __init__(self) -> None:
        super().__init__()
        self.original_module = nn.Linear(2, 2)


def adapted(model: nn.Module, *targets: str, **config: Any) -> nn.Module:
    """With LoRA at these modules."""
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # it asks transformers by an old name
        return get_peft_model(model, LoraConfig(r=2, target_modules=list(targets), **config))


def bad_classifier_of_bert() -> Case:
    model = ZOO["bert"].build()
    return Case(adapted(model, "query", "value", modules_to_save=["classifier"]), codes=_ONLY)


def bad_two_of_them() -> Case:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1))
    return Case(adapted(model, "0", modules_to_save=["1", "2"]), codes=_ONLY)


def good_adapter_alone() -> Case:
    return Case(adapted(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)), "0"))


def good_a_class_of_the_same_name() -> Case:
    model = nn.Sequential(ModulesToSaveWrapper(), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    return Case(model)
