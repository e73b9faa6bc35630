"""Layers that choose by mode or by ``requires_grad`` what a freeze must not choose for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frostline.freezing.machinery import Held
from frostline.freezing.record import EVAL, RECORD, asked_modes, get, is_held

_KERNEL_TRAINS = "_frostline_kernel_trains"
_GATE = "_frostline_checkpoint_gate"


class HeldRNN(Held):
    """cuDNN's recurrent kernels refuse backward in eval mode, so gradients ask for train mode.

    Dropout between the layers is 0 then, so the numbers are those of eval mode.
    """

    @property
    def dropout(self) -> float:
        own = self.__dict__
        if _KERNEL_TRAINS in own:
            return 0.0
        if "dropout" not in own:
            raise AttributeError("dropout")
        return own["dropout"]  # type: ignore[no-any-return]

    @dropout.setter
    def dropout(self, value: float) -> None:
        self.__dict__["dropout"] = value

    @property
    def training(self) -> bool:
        return _KERNEL_TRAINS in self.__dict__ or Held.training.fget(self)  # type: ignore[attr-defined]

    @training.setter
    def training(self, mode: bool) -> None:
        Held.training.fset(self, mode)  # type: ignore[attr-defined]

    def forward(self, input: Any, hx: Any = None) -> Any:
        if not is_held(self) or not _needs_input_gradient(input, hx):
            return super().forward(input, hx)
        self.__dict__[_KERNEL_TRAINS] = True
        try:
            return super().forward(input, hx)
        finally:
            del self.__dict__[_KERNEL_TRAINS]


def _needs_input_gradient(*inputs: Any) -> bool:
    if not torch.is_grad_enabled():
        return False
    flat = [i for given in inputs for i in (given if isinstance(given, tuple) else (given,))]
    return any(isinstance(i, Tensor) and i.requires_grad for i in flat)


class HeldFastPath(Held):
    """Transformer layers choose a fused kernel by ``requires_grad``; freezing must not choose it.

    Under the fast path padded positions become exactly 0 and the rest moves by rounding. A layer
    whose parameters were trainable before the freeze took the slow path with gradients enabled,
    and goes on taking it.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not self._slow_before() or not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        enabled = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            return super().forward(*args, **kwargs)
        finally:
            torch.backends.mha.set_fastpath_enabled(enabled)

    def _slow_before(self) -> bool:
        if not is_held(self):
            return False
        records = [record for m in self.modules() if (record := get(m)) is not None]
        return any(record.freed_gradients for record in records)


class HeldCheckpointing(Held):
    """Layers of transformers checkpoint only in training mode; a held one goes on doing so.

    The gate is open for the one question that the layer asks, and closed again when it takes the
    function that checkpoints, so that dropout in its forward stays off. There is no forward here:
    the layer checkpoints only if the forward of its class is its own.
    """

    gradient_checkpointing: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__
        asked = EVAL in own and asked_modes(self, own[RECORD])[0]
        if not asked or not self.gradient_checkpointing:
            return super().__call__(*args, **kwargs)
        own[_GATE] = True
        try:
            return super().__call__(*args, **kwargs)
        finally:
            own.pop(_GATE, None)

    @property
    def training(self) -> bool:
        return _GATE in self.__dict__ or Held.training.fget(self)  # type: ignore[attr-defined]

    @training.setter
    def training(self, mode: bool) -> None:
        Held.training.fset(self, mode)  # type: ignore[attr-defined]

    @property
    def _gradient_checkpointing_func(self) -> Any:
        own = self.__dict__
        own.pop(_GATE, None)
        if "_gradient_checkpointing_func" not in own:
            raise AttributeError("_gradient_checkpointing_func")
        return own["_gradient_checkpointing_func"]

    @_gradient_checkpointing_func.setter
    def _gradient_checkpointing_func(self, function: Any) -> None:
        self.__dict__["_gradient_checkpointing_func"] = function
