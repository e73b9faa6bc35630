"""Run the model once on a batch, see which modules ran and what they wrote, and put all back."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from frostline._calling import call, failing_call
from frostline._names import named_modules, named_tensors
from frostline._state import has_bytes, pieces, same_bits
from frostline.behaviours.untouched import untouched


@dataclass(frozen=True)
class Observed:
    """What one module did.

    Attributes:
        calls: how often its forward ran.
        wrote: names of its own tensors whose bytes were others afterwards.
    """

    calls: int = 0
    wrote: tuple[str, ...] = ()


def observe(model: nn.Module, batch: Any) -> dict[str, Observed]:
    """What each module did in one forward in the modes as they are, by its full name.

    Raises:
        BatchError: the model cannot be run on this batch.
    """
    entries = named_tensors(model)
    # By identity: a wrapper has the name of what it wraps, a shared module hangs at several places.
    calls: Counter[int] = Counter()
    wrote: dict[int, dict[str, None]] = {}
    with untouched(model, batch, values=True), torch.no_grad():
        before = [(e, _copied(e.tensor)) for e in entries if has_bytes(e.tensor)]
        for module in model.modules():
            module.register_forward_pre_hook(_counter(calls))
        with failing_call(batch):
            call(model, batch)
        for entry, old in before:
            now = _now(entry.owner, entry.attribute)
            if now is not entry.tensor or not all(map(same_bits, pieces(now), old)):
                wrote.setdefault(id(entry.owner), {})[entry.attribute] = None
    return {
        name: Observed(calls[id(module)], tuple(wrote.get(id(module), ())))
        for name, module in named_modules(model)
    }


def _copied(tensor: Tensor) -> list[Tensor]:
    return [piece.clone() for piece in pieces(tensor)]


def _counter(calls: Counter[int]) -> Any:
    def count(module: nn.Module, inputs: Any) -> None:
        calls[id(module)] += 1

    return count


def _now(owner: nn.Module, attribute: str) -> Any:
    for place in (owner._parameters, owner._buffers, vars(owner)):
        if attribute in place:
            return place[attribute]
    return None
