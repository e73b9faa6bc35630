"""What a real step changes, beside what was predicted without data."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline._names import named_tensors
from frostline._state import same_bits
from frostline.auditing.losses import loss_of
from frostline.auditing.predicting import predict
from frostline.auditing.predicting.batches import mapped
from frostline.auditing.step import Step
from tests.zoo import seeded

Loss = Callable[[nn.Module, Any], Tensor]
Make = Callable[[nn.Module], Optimizer] | Optimizer | None


def without_data(batch: Any) -> Any:
    """The batch on the meta device."""
    return mapped(batch, lambda tensor: tensor.to("meta"))


@dataclass(frozen=True)
class Compared:
    """Names of tensors: what really changed, and what was said before."""

    step: Step
    changed: frozenset[str]
    predicted: frozenset[str]
    undecided: dict[str, str]

    @property
    def wrong(self) -> set[str]:
        """Those of which something was said that is not so."""
        silent = self.changed - self.predicted - set(self.undecided)
        return (self.predicted - self.changed) | silent


def compared(
    model: nn.Module, make: Make, batch: Any, loss: Loss | None = None, *, train: bool = False
) -> Compared:
    """Predict with real weights and no data, then take the step for real."""
    optimizer = make if make is None or isinstance(make, Optimizer) else make(model)
    step = predict(model, optimizer, without_data(batch), loss, train=train)
    names = _names(model)
    changed = really(model, optimizer, batch, loss, train=train)
    return Compared(
        step,
        changed,
        frozenset(names[key] for key in step.changed if key in names),
        {names[key]: why for key, why in step.undecided.items() if key in names},
    )


def really(
    model: nn.Module, optimizer: Optimizer | None, batch: Any, loss: Loss | None, *, train: bool
) -> frozenset[str]:
    """Take the step, and compare every byte; the model is left as the step leaves it."""
    names = _names(model)
    before = {id(e.tensor): e.tensor.detach().clone() for e in named_tensors(model)}
    places = [(e, id(e.tensor)) for e in named_tensors(model)]
    if train:
        model.train()
    with seeded(1):
        value, _ = loss_of(model, batch, loss)
        if value.requires_grad:
            value.backward()
            if optimizer is not None:
                optimizer.step()
    after = {}
    for entry, key in places:
        own = vars(entry.owner)
        for held in (own["_parameters"], own["_buffers"], own):
            if entry.attribute in held:
                after[key] = held[entry.attribute]
                break
    return frozenset(
        names[key]
        for key, old in before.items()
        if after[key].shape != old.shape or not same_bits(after[key].detach(), old)
    )


def on_meta(
    model: nn.Module,
    make: Callable[[nn.Module], Optimizer],
    batch: Any,
    loss: Loss | None,
    *,
    train: bool,
) -> Step:
    """Predict for a copy of the model that has no memory."""
    copy = deepcopy(model).to("meta")
    return predict(copy, make(copy), without_data(batch), loss, train=train)


def _names(model: nn.Module) -> dict[int, str]:
    found: dict[int, str] = {}
    for entry in named_tensors(model):
        found.setdefault(id(entry.tensor), entry.name)
    return found


def sgd(model: nn.Module) -> Optimizer:
    """Of all parameters, frozen ones too, as many people build it."""
    return torch.optim.SGD(model.parameters(), lr=0.01)


def adamw(model: nn.Module) -> Optimizer:
    """Of all parameters, frozen ones too."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3)
