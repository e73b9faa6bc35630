"""The step at the end of a window: unscale, clip, step, scale anew, schedule, zero."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.amp import GradScaler
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from frostline.errors import AccumulationError


class Stepping:
    """How an optimizer steps, once for a window; nobody else steps it while a window is open.

    Args:
        optimizer: what steps.
        max_grad_norm: gradients are scaled down to this norm over all its parameters, or None.
        scaler: of the losses, or None.
        scheduler: of the learning rate, stepped after each step that was made, or None.

    Attributes:
        grad_norm: norm of the last window's gradient before clipping; None if it was not asked for.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_grad_norm: float | None,
        scaler: GradScaler | None,
        scheduler: Any,
    ) -> None:
        self.optimizer = optimizer
        self.grad_norm: float | None = None
        self._max_grad_norm, self._scheduler = max_grad_norm, scheduler
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._guard: RemovableHandle | None = None

    @property
    def parameters(self) -> list[Tensor]:
        """All that the optimizer steps."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def may_skip(self) -> bool:
        """Whether a gradient that is no finite number leaves the step out."""
        return self._scaler is not None

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to go backward from."""
        return loss if self._scaler is None else self._scaler.scale(loss)

    def open(self) -> None:
        """From now on a step by somebody else is an error."""
        self._guard = self.optimizer.register_step_pre_hook(_refuse_step)

    def close(self) -> None:
        """Anybody may step."""
        if self._guard is not None:
            self._guard.remove()
            self._guard = None

    def step(self) -> bool:
        """Step, and zero the gradients; whether the scaler let the step happen.

        Raises:
            AccumulationError: there is no gradient, or its norm is no finite number.
        """
        self.close()
        try:
            if all(p.grad is None for p in self.parameters):
                raise AccumulationError(
                    "no parameter of the optimizer got a gradient in this window; was it made "
                    "from another model, or is all that it has frozen?"
                )
            self._clip()
            stepped = self._step()
        finally:
            self.optimizer.zero_grad()
        if stepped and self._scheduler is not None:
            self._scheduler.step()
        return stepped

    def _clip(self) -> None:
        if self._max_grad_norm is None:
            return
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        found = [p.grad for p in self.parameters if p.grad is not None]
        norm: Any = get_total_norm(found)
        self.grad_norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not math.isfinite(self.grad_norm) and not self.may_skip:
            raise AccumulationError(
                f"the gradient of the window has a norm of {self.grad_norm}, so that it cannot be "
                "clipped; the window was discarded, without a step. torch.autograd.detect_anomaly "
                "finds where it comes from"
            )
        clip_grads_with_norm_(self.parameters, self._max_grad_norm, norm)

    def _step(self) -> bool:
        if self._scaler is None:
            self.optimizer.step()
            return True
        self._scaler.step(self.optimizer)
        # Fused optimizers are called also when nothing is to happen, so no hook of a step can tell.
        found = self._scaler._found_inf_per_device(self.optimizer).values()
        skipped = any(float(found_inf) for found_inf in found)
        self._scaler.update()
        return not skipped


def _refuse_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    raise AccumulationError(
        "optimizer.step() was called while a window of the Accumulator is open. acc.backward steps "
        "when the window is full, and acc.flush() before; take the call out of your loop"
    )
