"""One training step that is really taken: what became of it."""

from __future__ import annotations

import inspect
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer

from frostline._names import named_modules
from frostline.auditing.losses import loss_of
from frostline.auditing.measuring import raising
from frostline.errors import BatchError, FrostlineError, FrozenStateChanged
from frostline.probing.arguments import failing

Loss: TypeAlias = Callable[[nn.Module, Any], Tensor]
Stage: TypeAlias = Literal["forward", "backward", "optimizer.step()"]


@dataclass(eq=False)
class OneStep:
    """Forward, backward and the optimizer's step; an error in the latter two ends it.

    Attributes:
        model, optimizer, batch, compute_loss: as given.
        forgiving: whether any forward that raises ends the step, too. Otherwise only one that
            torch or a frozen part refuses; for the rest the batch is to blame.
        stage: where it is.
        loss: what the loss was, in words.
        raised: the error that ended it, in words.
        reached: ids of the parameters that got a gradient.
        drew: whether the forward drew random numbers.
    """

    model: nn.Module
    optimizer: Optimizer | None
    batch: Any
    compute_loss: Loss | None
    forgiving: bool = False
    stage: Stage = "forward"
    loss: str = ""
    raised: str = ""
    reached: set[int] = field(default_factory=set)
    drew: bool = False

    def take(self) -> None:
        """Take the step.

        Raises:
            BatchError: the forward raised, and it is not forgiven.
        """
        with _noting(self.model, self.reached):
            if self.optimizer is not None and _asks_for_closure(self.optimizer):
                self._with_closure(self.optimizer)
                return
            loss = self._forward()
            if loss is not None and self._backward(loss) and self.optimizer is not None:
                del loss  # and with it what the backward kept
                self._guarded("optimizer.step()", self.optimizer.step)

    def _forward(self) -> Tensor | None:
        self.stage, before = "forward", _generators()
        try:
            with failing(self.batch, self.compute_loss):
                loss, self.loss = loss_of(self.model, self.batch, self.compute_loss)
        except FrostlineError as error:
            cause = error.__cause__ or error
            known = isinstance(cause, FrozenStateChanged) or raising.ONE_VALUE in str(cause)
            if not (known or (self.forgiving and isinstance(error, BatchError))):
                raise
            self._end(cause)
            return None
        self.drew |= before != _generators()
        return loss

    def _backward(self, loss: Tensor) -> bool:
        """Whether the step goes on; with nothing trainable a loop ends here, by torch's error."""
        if self.optimizer is None and not loss.requires_grad:
            return True
        return self._guarded("backward", loss.backward)

    def _guarded(self, stage: Stage, act: Callable[[], Any]) -> bool:
        self.stage = stage
        try:
            act()
        except _EndedError:
            return False
        except Exception as error:
            self._end(error)
        return not self.raised

    def _end(self, error: BaseException) -> None:
        names = {id(module): name for name, module in named_modules(self.model)}
        stage = "the forward" if self.stage == "forward" else self.stage
        self.raised = raising.told(stage, error, names)

    def _with_closure(self, optimizer: Optimizer) -> None:
        calls = 0

        def closure() -> Any:
            nonlocal calls
            if calls:
                optimizer.zero_grad()
            calls += 1
            with torch.enable_grad():
                loss = self._forward()
                if loss is None or not self._backward(loss):
                    raise _EndedError
            self.stage = "optimizer.step()"
            return loss.detach()

        self._guarded("optimizer.step()", lambda: optimizer.step(closure))


class _EndedError(Exception):
    """A closure raised, and that has been told."""


def _asks_for_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _generators() -> tuple[Any, ...]:
    """The states of the random generators, to be compared."""
    numpy = sys.modules.get("numpy")
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return (
        *(bytes(state.numpy()) for state in (torch.get_rng_state(), *devices)),
        random.getstate(),
        str(numpy.random.get_state()[1:]) if numpy is not None else None,
    )


@contextmanager
def _noting(model: nn.Module, reached: set[int]) -> Iterator[None]:
    """Note the parameters whose gradient is accumulated, by hooks that leave nothing on them."""
    leaves = [p for p in model.parameters() if p.requires_grad and p.is_leaf]
    nodes = [(id(p), get_gradient_edge(p).node) for p in leaves]
    handles = [node.register_hook(partial(_note, reached, key)) for key, node in nodes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(reached: set[int], key: int, _: Any, gradients: Sequence[Tensor | None]) -> None:
    if any(gradient is not None for gradient in gradients):
        reached.add(key)
