"""One way in which people go wrong, as a set-up that an audit is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tests.auditing.cases import Case
from tests.zoo import Entry, fresh

Build = Callable[[], Case]


@dataclass(frozen=True)
class Fault:
    """A failure mode that an audit must tell.

    Attributes:
        number: of the failure mode, as in docs/coverage.md (``F1``).
        source: the thread in which somebody met it, or the library whose code does it.
        build: the set-up as the person had it; its codes are all that the audit must give.
    """

    number: int
    source: str
    build: Build

    @property
    def id(self) -> str:
        return f"F{self.number}-{self.build.__name__}"


FAULTS: list[Fault] = []


def fault(number: int, source: str) -> Callable[[Build], Build]:
    """Put a set-up into the corpus."""

    def keep(build: Build) -> Build:
        FAULTS.append(Fault(number, source, build))
        return build

    return keep


def flags_off(module: nn.Module) -> None:
    """The loop that every tutorial has, and no more."""
    for parameter in module.parameters():
        parameter.requires_grad = False


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)


def running(entry: Entry, model: nn.Module, *codes: str, **given: Any) -> Case:
    """The set-up with the batch and the loss of the zoo's entry."""
    return replace(
        Case(model, batch=entry.batch(), compute_loss=entry.loss, **given), codes=_set(codes)
    )


def case(model: nn.Module, batch: Any, loss: Any, *codes: str, **given: Any) -> Case:
    """The set-up with a batch and a loss of its own."""
    return Case(model, batch=batch, compute_loss=loss, codes=_set(codes), **given)


def _set(codes: Iterable[str]) -> frozenset[str]:
    return frozenset(f"FRZ{code}" for code in codes)


def lived(entry: Entry) -> nn.Module:
    """The model after its pretraining, in training mode as it was built."""
    return fresh(entry).train()
