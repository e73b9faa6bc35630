"""The ways in which people freeze `net.part` today: the columns of "who holds what".

Each is used as its own documentation says, with the functions that are published. Where the frozen
tensors hang on the root (`cls_token`) and a tool cannot reach them, they are flagged by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import timm.layers.norm_act as timm_norms
import timm.utils
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from torch import nn
from torch.optim import Optimizer
from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d, replace_batch_norm

import frostline as fl
from tests.freezing.kinds import ROOT_TENSORS, Net, RootNet
from tests.peers.expert import HoldsPart


@dataclass(frozen=True)
class Way:
    """A way to freeze.

    Attributes:
        name: the head of its column.
        what: what is done, for the page.
        freeze: freezes the part, in place; what it returns is handed to `undo`.
        at_epoch: what the loop does after each `model.train()` of its own.
        new_optimizer: its documentation says to build the optimizer after the freeze, from what is
            trainable; one from before is treated so too.
        undo: what it offers to take the freeze back.
    """

    name: str
    what: str
    freeze: Callable[[Net, Optimizer | None], Any]
    at_epoch: Callable[[Net], object] | None = None
    new_optimizer: bool = False
    undo: Callable[[Net, Any], object] | None = None


def roots(net: Net) -> list[nn.Parameter]:
    """Parameters on the root itself that belong to what is to be frozen."""
    return [p for name, p in net.named_parameters(recurse=False) if name in ROOT_TENSORS]


def flag_roots(net: Net, value: bool) -> None:
    for parameter in roots(net):
        parameter.requires_grad_(value)


# --- flags and modes ---------------------------------------------------------------------------


def flag(net: Net, _: Any) -> None:
    net.part.requires_grad_(False)
    flag_roots(net, False)


def eval_part(net: Net) -> None:
    net.part.eval()


def flag_and_eval(net: Net, _: Any) -> None:
    flag(net, _)
    eval_part(net)


def disabled_train(self: Any, mode: bool = True) -> Any:
    """As latent diffusion and LAVIS write it; hung on an object, `self` is the mode."""
    return self


def disable_train(net: Net, _: Any) -> None:
    flag_and_eval(net, _)
    net.part.train = disabled_train


# --- libraries ---------------------------------------------------------------------------------


def real_norm() -> AbstractContextManager[Any]:
    """timm freezes with torchvision's norm; where that is absent, transformers' copy of it."""
    if issubclass(timm_norms.FrozenBatchNorm2d, nn.Module):
        return nullcontext()
    return patch.object(timm_norms, "FrozenBatchNorm2d", DetrFrozenBatchNorm2d)


def timm_freeze(net: Net, _: Any) -> None:
    with real_norm():
        timm.utils.freeze(net, "part")
    flag_roots(net, False)


def timm_unfreeze(net: Net, _: Any) -> None:
    with real_norm():
        timm.utils.unfreeze(net, "part")
    flag_roots(net, True)


def lightning_freeze(train_bn: bool) -> Callable[[Net, Any], None]:
    def freeze(net: Net, _: Any) -> None:
        BaseFinetuning.freeze(net.part, train_bn=train_bn)
        flag_roots(net, False)

    return freeze


def lightning_unfreeze(net: Net, _: Any) -> None:
    BaseFinetuning.make_trainable(net.part)
    flag_roots(net, True)


def replace_norms(net: Net, _: Any) -> None:
    flag(net, _)
    with torch.no_grad():  # as its callers in transformers do
        replace_batch_norm(net.part)


# --- the expert, and ours ----------------------------------------------------------------------


class ExpertNet(HoldsPart, Net): ...


class ExpertRootNet(HoldsPart, RootNet): ...


def expert(net: Net, optimizer: Optimizer | None) -> None:
    # In place of having written the class so: every net is built before it is known who freezes it.
    net.__class__ = ExpertRootNet if isinstance(net, RootNet) else ExpertNet
    net.freeze(optimizer, roots(net))


def ours(net: Net, _: Any) -> fl.types.FrozenPart:
    return fl.freeze(net, ["part", *ROOT_TENSORS] if isinstance(net, RootNet) else "part")


_WAYS = [
    Way("flag", "`requires_grad_(False)`, nothing else; optimizers have all parameters.", flag),
    Way("eval once", "The same, and `part.eval()` once.", flag_and_eval),
    Way(
        "eval each epoch",
        "The flag, a new optimizer, and `part.eval()` after each `model.train()` of the loop.",
        flag_and_eval,
        at_epoch=eval_part,
        new_optimizer=True,
    ),
    Way(
        "disabled_train",
        "The flag, `part.eval()`, and `part.train = disabled_train`, a function that does nothing "
        "(latent diffusion, LAVIS).",
        disable_train,
        new_optimizer=True,
    ),
    Way(
        "timm",
        '`timm.utils.freeze(net, "part")`, which runs `freeze_batch_norm_2d` too.',
        timm_freeze,
        new_optimizer=True,
        undo=timm_unfreeze,
    ),
    Way(
        "Lightning",
        "`BaseFinetuning.freeze(part)`, by default with `train_bn=True`: norms go on training.",
        lightning_freeze(train_bn=True),
        new_optimizer=True,
        undo=lightning_unfreeze,
    ),
    Way(
        "Lightning, no BN",
        "`BaseFinetuning.freeze(part, train_bn=False)`.",
        lightning_freeze(train_bn=False),
        new_optimizer=True,
        undo=lightning_unfreeze,
    ),
    Way(
        "DETR's norm",
        "The flag, and transformers' `replace_batch_norm`, which puts `DetrFrozenBatchNorm2d` in "
        "place, a copy of torchvision's `FrozenBatchNorm2d`.",
        replace_norms,
        new_optimizer=True,
    ),
    Way(
        "expert",
        "The class at the end of this page: flag, gradients and optimizer cleared, eval mode "
        "again at each `train()` and each forward, resets and observers switched off.",
        expert,
        new_optimizer=True,
    ),
    Way(
        "frostline",
        '`fl.freeze(net, "part")`.',
        ours,
        undo=lambda net, part: part.undo(),
    ),
]
WAYS = {way.name: way for way in _WAYS}
