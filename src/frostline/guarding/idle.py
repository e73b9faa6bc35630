"""The mirror check: what is trainable and never changed, and why."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from frostline._names import named_tensors
from frostline.checksums import Checksum, checksum, matches
from frostline.errors import UnsupportedTensor
from frostline.guarding import local
from frostline.guarding.report import Idle

_requires_grad = attrgetter("requires_grad")
_LOOKS = 16  # steps of an optimizer over which gradients are looked for


class IdleWatch:
    """Trainable parameters as they were, and what optimizers did with them."""

    def __init__(self, models: Iterable[nn.Module], frozen: set[int], key: int) -> None:
        self._key = key
        self._watched: dict[int, tuple[str, nn.Parameter, Checksum]] = {}
        self._optimized: set[int] = set()
        self._pending: dict[int, nn.Parameter] = {}
        self._looks: WeakKeyDictionary[Optimizer, int] = WeakKeyDictionary()
        for model in models:
            self.add(model, frozen)

    def add(self, model: nn.Module, frozen: set[int]) -> None:
        """Watch what is trainable in ``model`` now and was not before."""
        for entry in named_tensors(model):
            p = entry.tensor
            if not isinstance(p, nn.Parameter) or not p.requires_grad or id(p) in frozen:
                continue
            if id(p) in self._watched or isinstance(p, UninitializedParameter):
                continue
            try:
                found = checksum(local.of(p), self._key, entry.name)
            except UnsupportedTensor:
                continue
            self._watched[id(p)] = entry.name, p, found
            self._pending[id(p)] = p

    def drop_frozen(self) -> bool:
        """Forget what was frozen meanwhile; whether there was any."""
        if all(map(_requires_grad, (p for _, p, _ in self._watched.values()))):
            return False
        self._watched = {i: entry for i, entry in self._watched.items() if entry[1].requires_grad}
        return True

    def before_step(self, optimizer: Optimizer) -> None:
        """Note which parameters the optimizer has, and which of them have a gradient."""
        looks = self._looks.get(optimizer, 0)
        if looks >= _LOOKS:
            return
        self._looks[optimizer] = looks + 1
        self._note(optimizer)
        self._pending = {i: p for i, p in self._pending.items() if p.grad is None}

    def _note(self, optimizer: Optimizer) -> None:
        for group in optimizer.param_groups:
            self._optimized.update(map(id, group["params"]))

    def idle(self) -> list[Idle]:
        """What did not change since it was first watched."""
        for optimizer in list(self._looks):  # which may have got more groups since
            self._note(optimizer)
        return [
            Idle(name, self._reason(p))
            for name, p, before in self._watched.values()
            if p.requires_grad and self._same(before, p, name)
        ]

    def _same(self, before: Checksum, p: nn.Parameter, name: str) -> bool:
        try:
            return matches(before, local.of(p), self._key, name)
        except UnsupportedTensor:
            return False

    def _reason(self, p: Any) -> str:
        if id(p) not in self._optimized:
            return "in no optimizer"
        if id(p) in self._pending and p.grad is None:
            return "no gradient"
        if p.grad is not None and not bool(p.grad.any()):
            return "gradient was zero"
        return "unknown"
