"""Quantisation observers under a hold: they look at no mode, so eval does not stop them."""

from __future__ import annotations

import torch
from torch import Tensor

from frostline.freezing import ignored
from frostline.freezing.machinery import Held
from frostline.freezing.record import is_held


class HeldObserver(Held):
    """An observer that is held hands its input through and records nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x if is_held(self) else super().forward(x)


class HeldFakeQuantize(Held):
    """Reads ``observer_enabled`` as 0 while held; the buffer keeps its value for the state dict."""

    @property
    def observer_enabled(self) -> Tensor:
        buffers = self.__dict__.get("_buffers", {})
        if "observer_enabled" not in buffers:
            raise AttributeError("observer_enabled")
        value: Tensor = buffers["observer_enabled"]
        return torch.zeros_like(value) if is_held(self) else value

    def enable_observer(self, enabled: bool = True) -> None:
        if is_held(self):
            # It would write into the stand-in above, and be lost without a word.
            ignored.note(self, "enable_observer()")
        else:
            super().enable_observer(enabled)  # type: ignore[misc]
