"""What a training step changes, by taking one: forward, backward and the optimizer's step."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from frostline._names import NamedTensor, named_tensors
from frostline.auditing.measuring.comparing import changes
from frostline.auditing.measuring.one_step import Loss, OneStep
from frostline.auditing.measuring.sandbox import sandbox
from frostline.auditing.measuring.writers import Writers
from frostline.auditing.step import Step
from frostline.freezing.planning import unwrapped
from frostline.probing.outside import modules_beside

_TRIES = 3  # runs more, with other random numbers, for parameters that no gradient reached


def measure(
    model: nn.Module,
    optimizer: Optimizer | None,
    batch: Any,
    compute_loss: Loss | None,
    *,
    train: bool,
) -> Step:
    """Take one real training step, see what it changed, and put everything back.

    Gradients add to those that are there. Without an optimizer it ends after the backward; where
    the loss needs no gradient, there is none. An optimizer that asks for a closure (LBFGS) gets
    one that runs forward and backward.

    Args:
        model: the root; wrappers such as DDP are left out, which would wait for other ranks.
        optimizer: the one that steps, or None.
        batch: a real batch.
        compute_loss: gives the loss; without, see :func:`frostline.auditing.losses.loss_of`.
        train: call ``model.train()`` before it.

    Returns:
        what it did. ``drift`` lacks tensors whose shape changed, or of which a number became
        infinite or none.

    Raises:
        BatchError: the forward raised, in the modes as they are. After a ``model.train()`` that
            changed modes, it is told in ``raised``.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).requires_grad_(False)
        >>> step = measure(net.eval(), None, torch.randn(4, 2), None, train=False)
        >>> len(step.changed), len(measure(net, None, torch.randn(4, 2), None, train=True).changed)
        (0, 3)
    """
    asked = _Asked(unwrapped(model), optimizer, batch, compute_loss, train)
    step, drew = asked.taken()
    for number in range(_TRIES if drew else 0):
        if asked.trainable <= (step.reached or frozenset()):
            break  # layers that are left out at random have had their turn
        step = replace(step, reached=(step.reached or frozenset()) | asked.reached(number))
    return step


class _Asked:
    """A step that is asked about, and can be taken again and again."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        batch: Any,
        compute_loss: Loss | None,
        train: bool,
    ) -> None:
        self._model, self._optimizer, self._batch = model, optimizer, batch
        self._loss, self._train = compute_loss, train
        self._beside = () if compute_loss is None else modules_beside(model, compute_loss)
        self.trainable = {id(p) for p in model.parameters() if p.requires_grad}

    def taken(self) -> tuple[Step, bool]:
        """What one step does, and whether it drew random numbers."""
        with sandbox(self._model, self._optimizer, self._batch, self._beside) as before:
            entries = named_tensors(self._model)
            counters = _counters(entries)
            run = self._prepared(self._optimizer)
            with Writers(self._model, entries, run) as writers:
                run.take()
            changed, drift = changes(entries, before)
            counts = {id(e.owner): _count(e) - old for e, old in counters}
            step = Step(
                "measured",
                changed=frozenset(changed),
                reached=frozenset(run.reached),
                drift=drift,
                calls={key: count for key, count in counts.items() if count > 0},
                raised=run.raised,
                loss=run.loss,
                writers={key: writers.told(key) for key in changed},
            )
        return step, run.drew and not run.raised

    def reached(self, number: int) -> frozenset[int]:
        """What gradients reach with other random numbers."""
        with sandbox(self._model, None, self._batch, self._beside):
            _seed(number)
            run = self._prepared(None)
            run.take()
        return frozenset(run.reached)

    def _prepared(self, optimizer: Optimizer | None) -> OneStep:
        modes = [module.training for module in self._model.modules()]
        if self._train:
            self._model.train()
        moved = modes != [module.training for module in self._model.modules()]
        return OneStep(self._model, optimizer, self._batch, self._loss, forgiving=moved)


def _counters(entries: list[NamedTensor]) -> list[tuple[NamedTensor, int]]:
    found = (e for e in entries if e.attribute == "num_batches_tracked" and e.kind == "buffer")
    return [(entry, _count(entry)) for entry in found]


def _count(entry: NamedTensor) -> int:
    counter = entry.owner._buffers.get(entry.attribute)
    readable = counter is not None and counter.numel() == 1 and not counter.is_meta
    return int(counter) if readable and counter is not None else 0


def _seed(number: int) -> None:
    torch.manual_seed(number)
    random.seed(number)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(number)
