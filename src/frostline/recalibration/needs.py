"""How many bytes a batch holds while it waits at a norm, measured in a run of it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from frostline._batches import tensors_in
from frostline._moments import Moments
from frostline.lockstep.norm_calls import NormCall
from frostline.recalibration.norms import Norm
from frostline.recalibration.observing import Observing
from frostline.recalibration.paging import whole_pages
from frostline.recalibration.populations import normalised


@dataclass(frozen=True)
class Needs:
    """Of one batch, or of several.

    Attributes:
        calls: norm calls in a forward.
        memory: the most bytes that are held at a norm call.
        file: bytes of a file that takes them, in which each size has slots of its own.
    """

    calls: int
    memory: int
    file: int

    def times(self, batches: int) -> Needs:
        """Of so many batches that wait together."""
        return Needs(self.calls, self.memory * batches, self.file * batches)


class Alone(Observing):
    """One batch by itself: norms use its statistics, and it holds there what is alive then."""

    def __init__(self, model: nn.Module, norms: Sequence[Norm]) -> None:
        super().__init__(model, norms)
        self._born = _Born()
        self._places = self._memory = 0
        self._slots: Counter[int] = Counter()

    def measure(self, run: Callable[[], None]) -> Needs:
        """What it needs; ``run`` calls the model on it."""
        with self._born, self:
            run()
        file = sum(whole_pages(size) * count for size, count in self._slots.items())
        return Needs(self._places, self._memory, file)

    def batch_norm(self, call: NormCall) -> Tensor:
        """One more place to wait at."""
        self.calls[id(call.running_mean)] += 1
        self._places += 1
        alive = Counter(self._born.alive())
        self._memory = max(self._memory, sum(alive.elements()))
        self._slots |= alive
        return normalised(call, Moments.of(call.input))


class _Born(TorchDispatchMode):
    """Notes every storage that an operation makes, without keeping it alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        # Views, and arguments that were written in place, bring no memory of their own.
        if all(returned.alias_info is None for returned in func._schema.returns):
            for tensor in tensors_in(result):
                if tensor.layout is torch.strided and type(tensor) is Tensor:
                    storage = tensor.untyped_storage()
                    # The reference keeps this address from being used again.
                    self._storages.setdefault(storage._cdata, StorageWeakRef(storage))
        return result

    def alive(self) -> Iterator[int]:
        """Bytes of each that is still used by somebody."""
        for key, reference in list(self._storages.items()):
            storage: Any = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)
            if storage is None:
                del self._storages[key]
            else:
                yield storage.nbytes()
