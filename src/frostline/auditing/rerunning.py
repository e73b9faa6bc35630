"""A run of a model once more: with other random numbers, or with all that follows from a change."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from frostline.probing.calls import Calls, Passing, Site, Visit, _draw_anew
from frostline.probing.rows import effect
from frostline.probing.runs import First


class Salted(Calls):
    """Random numbers are drawn anew for each call, and with another salt they are others."""

    def __init__(self, model: nn.Module, visit: Visit, salt: int) -> None:
        super().__init__(model, visit)
        self._salt = salt
        random.seed(salt)
        if (numpy := sys.modules.get("numpy")) is not None:
            numpy.random.seed(salt)

    def _shown(self, *args: Any) -> Any:
        shown = super()._shown(*args)
        if self._salt:
            _draw_anew(torch.initial_seed() + self._salt)
        return shown


class Whole:
    """Nothing is put back, so that the outputs of whole parts show how far all of it goes.

    Args:
        first: the run to compare with.
        modules: whose outputs to compare.

    Attributes:
        changed: what differs, and by how much in root mean squares.
    """

    def __init__(self, first: First, modules: Iterable[nn.Module]) -> None:
        self.changed: dict[Site, float] = {}
        self._base = first.base
        self._wanted = {id(module) for module in modules}

    def __call__(self, passing: Passing, tensor: Tensor) -> Tensor:
        seen = self._base.get(passing.site)
        wanted = passing.site.side == "out" and id(passing.call) in self._wanted
        if wanted and seen is not None and seen.fits(tensor):
            now = tensor.detach()
            elements = seen.moved_in(now)
            if bool(elements.any()):
                self.changed[passing.site] = effect(now, seen.value, elements)
        return tensor
