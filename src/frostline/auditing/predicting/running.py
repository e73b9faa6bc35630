"""``predict``: the tensors that one step changes, from a run on tensors without memory.

The step is run as it is, forward, loss, backward and ``optimizer.step()``, with shapes only. A
dispatch mode sees every operation and reads from its schema what it writes; memory that tensors
share is shared in the run. Whether a write changes bytes follows from what is known of the values:
see ``values.py`` and ``effects.py``. Parameters without values are taken to be in general position,
so a zero where nobody can see one is not expected.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from frostline._names import NamedTensor, places
from frostline.auditing.losses import loss_of
from frostline.auditing.predicting.batches import mapped
from frostline.auditing.predicting.effects import Effect, stored
from frostline.auditing.predicting.keeping import kept
from frostline.auditing.predicting.ledger import Ledger
from frostline.auditing.predicting.listening import Operations, Python
from frostline.auditing.predicting.places import Where
from frostline.auditing.predicting.reasons import NotPredictable, in_words
from frostline.auditing.predicting.stand_ins import StandIns
from frostline.auditing.predicting.stepping import kept_by, step
from frostline.auditing.predicting.values import Value, Values, storage_of
from frostline.auditing.step import Step
from frostline.errors import BatchError, FreezeError
from frostline.freezing.planning import unwrapped

_META = torch.device("meta")
_ONE_VALUE = "Expected more than 1 value per channel"


def predict(
    model: nn.Module,
    optimizer: Optimizer | None,
    batch: Any,
    compute_loss: Callable[[nn.Module, Any], Tensor] | None,
    *,
    train: bool,
) -> Step:
    """What one step would change; nothing real is computed or written, everything is put back.

    Args:
        model: on the meta device or not.
        optimizer: that would step; without one there is no step, only forward and backward.
        batch: on the meta device or not; its values are not used.
        compute_loss: ``compute_loss(model, batch)``; see :func:`loss_of`.
        train: whether ``model.train()`` comes first.

    Raises:
        NotPredictable: the step needs values.
        BatchError: ``compute_loss`` gave no loss.

    Example:
        >>> net = nn.BatchNorm1d(2, device="meta")
        >>> found = predict(net, None, torch.zeros(4, 2), None, train=True)
        >>> id(net.running_mean) in found.changed, id(net.weight) in found.changed
        (True, False)
    """
    model = unwrapped(model)
    run = _Run(model, optimizer, places(model).tensors)
    try:
        return run.go(batch, compute_loss, train=train)
    except (NotPredictable, BatchError):
        raise
    except Exception as error:
        raise NotPredictable(in_words(error)) from error


@dataclass(eq=False, repr=False)
class _Run:
    """One run, and what it found."""

    model: nn.Module
    optimizer: Optimizer | None
    tensors: list[NamedTensor]
    values: Values = field(default_factory=Values)
    ledger: Ledger = field(default_factory=Ledger)
    reached: frozenset[int] = frozenset()
    loss: str = ""
    raised: str = ""

    def go(self, batch: Any, compute_loss: Any, *, train: bool) -> Step:
        device = self._device()
        where = Where(self.model)
        with ExitStack() as stack:
            fake = stack.enter_context(kept(self.model, self.optimizer))
            ins = StandIns(fake, self.values, device if device == _META else None)
            self._watch(ins)
            given = mapped(batch, lambda tensor: ins.of_batch(tensor, device or tensor.device))
            seen = (ins, self.values, self.ledger, where)
            stack.enter_context(where.followed())
            operations = stack.enter_context(Operations(*seen))
            stack.enter_context(Python(*seen))
            if train:
                self.model.train()
            self._step(given, compute_loss, operations, where, ins)
            self._compare(ins)
        return self._told()

    def _device(self) -> torch.device | None:
        """The device of the run, meta if any tensor of the model is there; None without tensors."""
        devices = {entry.tensor.device for entry in self.tensors}
        return _META if _META in devices else next(iter(devices), None)

    def _watch(self, ins: StandIns) -> None:
        others = _parameters(self.optimizer)
        for tensor in [*(entry.tensor for entry in self.tensors), *others]:
            gradient = tensor.grad if tensor.is_leaf else None
            if gradient is not None:
                self.ledger.add(gradient, ins.of_moving(gradient))
            self.ledger.add(tensor, ins.of(tensor))
        for tensor in kept_by(self.optimizer) if self.optimizer is not None else ():
            ins.of_moving(tensor)

    def _step(
        self, batch: Any, compute_loss: Any, operations: Operations, where: Where, ins: StandIns
    ) -> None:
        try:
            loss, self.loss = loss_of(self.model, batch, compute_loss)
        except ValueError as error:
            if _ONE_VALUE not in str(error):
                raise
            self.raised = str(error)
            return
        if not loss.requires_grad:
            self.raised = "the loss has no graph: no trainable parameter is in it"
            return
        where.outside, operations.in_backward = "backward", True
        before = [(p, p.grad) for p in self._leaves()]
        loss.backward()
        operations.in_backward = False
        self.reached = frozenset(id(p) for p, grad in before if self._has_got(p, grad))
        if self.optimizer is not None:
            where.outside = f"{type(self.optimizer).__name__}.step"
            operations.gradients = self._gradients(ins)
            # Torch's own ask for sizes of gradients only, to bound a step: any will do.
            operations.any_number = type(self.optimizer).__module__.startswith("torch.optim")
            try:
                step(self.optimizer, self.ledger, self.reached)
            except FreezeError as error:
                self.raised = str(error)

    def _gradients(self, ins: StandIns) -> dict[int, Value]:
        """What is known of each parameter's gradient, by the parameter's storage."""
        pairs = [(p, p.grad) for p in _parameters(self.optimizer)]
        return {storage_of(ins.of(p)): self.values.of(ins.of(g)) for p, g in pairs if g is not None}

    def _leaves(self) -> list[Tensor]:
        found = [*(entry.tensor for entry in self.tensors), *_parameters(self.optimizer)]
        return [tensor for tensor in found if tensor.is_leaf and tensor.requires_grad]

    def _has_got(self, parameter: Tensor, before: Tensor | None) -> bool:
        now = parameter.grad
        return now is not before or (now is not None and self.ledger.writes[id(now)] > 0)

    def _compare(self, ins: StandIns) -> None:
        """Find tensors in whose place there is another one now."""
        for entry in self.tensors:
            now = _now(entry)
            if now is entry.tensor:
                continue
            writer = f"{entry.attribute} = ..."
            if isinstance(now, Tensor):
                found = stored(self.values, ins.of(entry.tensor), ins.of(now))
            else:
                found = Effect("sure")
            self.ledger.note(id(entry.tensor), found, writer)

    def _told(self) -> Step:
        effects: Mapping[int, Effect] = self.ledger.effects
        known = {id(entry.tensor) for entry in self.tensors}
        known |= {id(parameter) for parameter in _parameters(self.optimizer)}
        found = {key: effects[key] for key in effects if key in known}
        return Step(
            "predicted",
            frozenset(key for key, each in found.items() if each.kind == "sure"),
            {key: each.why for key, each in found.items() if each.kind != "sure"},
            self.reached,
            calls=self._calls(),
            raised=self.raised,
            loss=self.loss,
            writers={key: self.ledger.writers[key] for key in found},
        )

    def _calls(self) -> dict[int, int]:
        return {
            id(entry.owner): self.ledger.writes[id(entry.tensor)]
            for entry in self.tensors
            if entry.attribute == "num_batches_tracked"
            and self.ledger.writes.get(id(entry.tensor), 0)
        }


def _now(entry: NamedTensor) -> Any:
    own = vars(entry.owner)
    for held in (own["_parameters"], own["_buffers"], own):
        if entry.attribute in held:
            return held[entry.attribute]
    return None


def _parameters(optimizer: Optimizer | None) -> list[Tensor]:
    groups = optimizer.param_groups if optimizer is not None else ()
    return [parameter for group in groups for parameter in group["params"]]
