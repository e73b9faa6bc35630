"""Which tensors each run has made and still holds, and which of them depend on its batch."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frostline._batches import tensors_in
from frostline.errors import AccumulationError


@dataclass(frozen=True, eq=False, slots=True)
class _Entry:
    tensor: weakref.ref[Tensor]
    run: int
    depends: bool


class Holdings:
    """Found by watching what goes into calls of torch and what comes out.

    Args:
        batches: that of each run; what is computed from one of them depends on it.
        shared: tensors that belong to no run: those of the model.
    """

    def __init__(self, batches: Sequence[Any] = (), shared: Iterable[Tensor] = ()) -> None:
        self._shared = {id(tensor): tensor for tensor in shared}
        self._entries: dict[int, _Entry] = {}
        self._by_run: dict[int, set[int]] = {}
        self._limit = 4096
        for run, batch in enumerate(batches):
            self.claim(run, batch)

    def claim(self, run: int, batch: Any) -> None:
        """What is computed from ``batch`` depends on it; but not if several runs have it."""
        for tensor in tensors_in(batch):
            in_several = self._known(tensor) is not None
            self._enter(tensor, run, depends=not in_several)

    def note(self, run: int, function: Any, arguments: Any, result: Any) -> None:
        """A run has called a function of torch.

        Raises:
            AccumulationError: with a tensor that depends on the batch of another run.
        """
        depends = False
        for tensor in tensors_in(_by_value(function, arguments)):
            entry = self._known(tensor)
            if entry is None:
                self._enter(tensor, run, depends=False)
            elif entry.depends:
                if entry.run != run:
                    _refuse(tensor, entry.run, run)
                depends = True
        for tensor in tensors_in(result):
            if depends or self._known(tensor) is None:
                self._enter(tensor, run, depends=depends)

    def _known(self, tensor: Tensor) -> _Entry | None:
        entry = self._entries.get(id(tensor))
        return entry if entry is not None and entry.tensor() is tensor else None

    def _enter(self, tensor: Tensor, run: int, *, depends: bool) -> None:
        if id(tensor) in self._shared:
            return
        if len(self._entries) > self._limit:
            self._forget_dead()
        self._entries[id(tensor)] = _Entry(weakref.ref(tensor), run, depends)
        self._by_run.setdefault(run, set()).add(id(tensor))

    def _forget_dead(self) -> None:
        self._entries = {k: e for k, e in self._entries.items() if e.tensor() is not None}
        self._limit = 2 * len(self._entries) + 4096

    def held(self, run: int) -> list[Tensor]:
        """What a run has made or used and somebody still refers to."""
        return [tensor for tensor, _ in self._held(run)]

    def _held(self, run: int) -> Iterator[tuple[Tensor, bool]]:
        keys = self._by_run.get(run, set())
        found = [self._entries[key] for key in keys if key in self._entries]
        alive = [(entry.tensor(), entry.depends) for entry in found if entry.run == run]
        self._by_run[run] = {id(tensor) for tensor, _ in alive if tensor is not None}
        return ((tensor, depends) for tensor, depends in alive if tensor is not None)

    def let_go(self, run: int) -> list[tuple[Tensor, bool]]:
        """What is held, without weak references from here; :meth:`take_up` afterwards."""
        found = list(self._held(run))
        for tensor, _ in found:
            self._entries.pop(id(tensor), None)
        return found

    def take_up(self, run: int, found: list[tuple[Tensor, bool]]) -> None:
        """Know them again."""
        for tensor, depends in found:
            self._enter(tensor, run, depends=depends)


# Of these only the shape and dtype of an argument matter: of the first, or of all others.
_NEW = {
    torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.rand_like,
    torch.randn_like, Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full,
    Tensor.new_tensor,
}  # fmt: skip
_SHAPED = {Tensor.view_as, Tensor.expand_as, Tensor.reshape_as, Tensor.type_as}


def _by_value(function: Any, arguments: Any) -> Any:
    """The arguments whose content matters."""
    if function in _NEW:
        return ()
    return arguments[:1] if function in _SHAPED else arguments


def _refuse(tensor: Tensor, maker: int, user: int) -> None:
    raise AccumulationError(
        f"microbatch {user} uses a tensor {list(tensor.shape)} that microbatch {maker} has made: "
        "the model, a hook or the loss keeps it from one forward to another (in an attribute, a "
        "list), which the microbatches overwrite for each other. Pass it on as an output, or pass "
        'batchnorm="plain"'
    )
