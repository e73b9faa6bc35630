"""The running statistics of a model over a window: what they were before it, and how to go back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.distributed import get_world_size
from torch.nn.parallel import DistributedDataParallel

from frostline._names import named_tensors
from frostline._state import has_bytes, same_bits
from frostline.errors import AccumulationError

BatchNorm = Literal["plain", "compensated", "deferred"]

COUNTER = "num_batches_tracked"
AVERAGES = ("running_mean", "running_var")


@dataclass(eq=False)
class Kept:
    """A statistic and its value at some moment.

    Attributes:
        tensor: the buffer.
        value: a copy of what was in it.
        owner: the module that holds it, if that was looked for.
        attribute: its name there.
    """

    tensor: Tensor
    value: Tensor
    owner: nn.Module | None = None
    attribute: str = ""

    def now(self) -> Tensor:
        """The buffer at its place; old norms count by ``counter = counter + 1``, which is new."""
        here = None if self.owner is None else _buffer(self.owner, self.attribute)
        return self.tensor if here is None else here

    def restore(self) -> None:
        """Bring back the buffer and its value."""
        put_back([self])


def put_back(kept: Iterable[Kept]) -> None:
    """Bring back buffers and values, without a look at the device, nor a step of any version."""
    everything = list(kept)
    for entry in everything:
        if entry.owner is not None:
            entry.owner._buffers[entry.attribute] = entry.tensor
    if everything:
        tensors = [entry.tensor for entry in everything]
        with torch.no_grad(), _unsafe_preserve_version_counter(tuple(tensors)):
            torch._foreach_copy_(tensors, [entry.value for entry in everything])


def statistics_of(model: nn.Module, *attributes: str) -> list[Kept]:
    """Buffers of these names in all modules, as they are now."""
    return [
        Kept(tensor, tensor.detach().clone(), module, attribute)
        for module in model.modules()
        for attribute in attributes
        if (tensor := _buffer(module, attribute)) is not None and has_bytes(tensor)
    ]


def _buffer(module: nn.Module, name: str) -> Tensor | None:
    buffers = module._buffers  # that of a scripted module has no get()
    return buffers[name] if name in buffers else None  # noqa: SIM401


class RunningStatistics:
    """Running statistics over windows of microbatches; the base, which leaves all to torch.

    The window opens at the first :meth:`forward` and closes at :meth:`commit` or :meth:`discard`.
    Statistics are buffers of the names that torch gives them, and under all but ``"plain"`` those
    of other names that are passed to ``F.batch_norm``.

    Args:
        model: whose norms these are.
    """

    batchnorm: BatchNorm

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before: dict[int, Kept] = {}

    @contextmanager
    def forward(self, count: int) -> Iterator[None]:
        """Active while one microbatch goes forward; after an exception inside, :meth:`discard`.

        Args:
            count: microbatches in this window, 1 or more.

        Raises:
            AccumulationError: a norm writes its statistics where that cannot be seen.
        """
        is_first = not self._before
        if is_first:
            found = statistics_of(self._model, *AVERAGES, COUNTER)
            self._before = {id(kept.tensor): kept for kept in found}
        with self._forward(count) as written:
            yield
            if is_first and written is not None:
                self._refuse_unseen(written)

    def backward(self) -> AbstractContextManager[None]:
        """Active while one microbatch goes backward, where a checkpoint runs norms once more."""
        return nullcontext()

    def commit(self) -> None:
        """The window succeeded, also if it was shorter than announced: its statistics count."""
        self._before = {}

    def discard(self) -> None:
        """The window failed or was skipped: statistics and counters as before it, bit for bit."""
        put_back(self._before.values())
        self._before = {}

    def state_dict(self) -> dict[str, Any]:
        """The open window, by names of buffers: tensors, numbers, texts, lists and dicts of them.

        It holds references; nothing in it changes later.

        Raises:
            AccumulationError: a norm updates a buffer that no module holds.
        """
        names = Names(self._model)
        before = {names.of(kept.tensor): kept.value for kept in self._before.values()}
        return {"version": 1, "batchnorm": self.batchnorm, "before": before}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the window that was open when ``state`` was made.

        Raises:
            AccumulationError: it is of another ``batchnorm``, or of a model with other names.
        """
        if state["batchnorm"] != self.batchnorm:
            raise AccumulationError(
                f"the saved window is one of batchnorm={state['batchnorm']!r}; expected "
                f"{self.batchnorm!r}. Pass batchnorm={state['batchnorm']!r}"
            )
        names = Names(self._model)
        found = statistics_of(self._model, *AVERAGES, COUNTER)
        here = {id(kept.tensor): kept for kept in found}
        self._before = {}
        for name, value in state["before"].items():
            tensor = names.tensor(name, value)
            kept = here.get(id(tensor), Kept(tensor, value))
            kept.value = value.to(tensor)
            self._before[id(tensor)] = kept

    @contextmanager
    def _forward(self, count: int) -> Iterator[Collection[int] | None]:
        """Gives which buffers are written as intended, by id; None if that is all the same."""
        yield None

    def _keep(self, *buffers: Tensor | None) -> None:
        """Keep what is in these now, unless they are known."""
        for buffer in buffers:
            if buffer is not None and id(buffer) not in self._before:
                self._before[id(buffer)] = Kept(buffer, buffer.detach().clone())

    def _refuse_unseen(self, written: Collection[int]) -> None:
        names = Names(self._model)
        for kept in self._before.values():
            if id(kept.tensor) not in written and self._was_written(kept):
                raise AccumulationError(
                    f"{names.of(kept.now())} was written by {type(kept.owner).__name__} itself, "
                    f'and not through torch.nn.functional.batch_norm; batchnorm="{self.batchnorm}" '
                    'cannot join such updates. Pass batchnorm="plain", or let the module call '
                    "F.batch_norm"
                )

    def _was_written(self, kept: Kept) -> bool:
        if isinstance(self._model, DistributedDataParallel):
            # It writes to buffers, too. SyncBatchNorm has a kernel of its own for several ranks.
            is_synchronised = isinstance(kept.owner, nn.SyncBatchNorm) and kept.owner.training
            return is_synchronised and get_world_size() > 1
        if kept.attribute not in AVERAGES:
            return False
        return kept.now() is not kept.tensor or not same_bits(kept.tensor, kept.value)


class Counters:
    """The counters of a model, which have their values of now again at the end."""

    def __init__(self, model: nn.Module) -> None:
        self._kept = statistics_of(model, COUNTER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        put_back(self._kept)

    def steps(self) -> list[tuple[Tensor, Tensor]]:
        """The counters, and how far each has gone."""
        return [(kept.tensor, kept.now() - kept.value) for kept in self._kept]


class Names:
    """Tensors of a model by their full names, and back."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = {entry.name: entry.tensor for entry in named_tensors(model)}
        self._names = {id(tensor): name for name, tensor in self._tensors.items()}

    def of(self, tensor: Tensor) -> str:
        """The name of one of its places."""
        if id(tensor) not in self._names:
            raise AccumulationError(
                f"a norm updates a tensor {list(tensor.shape)} that no module of the model holds, "
                "so that the open window cannot be saved; call register_buffer for it"
            )
        return self._names[id(tensor)]

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """The one that has this name, and the shape of ``like``."""
        here = self._tensors.get(name)
        if here is None or here.shape != like.shape:
            has = "does not have" if here is None else f"has as {list(here.shape)}"
            raise AccumulationError(
                f"the saved window has {name} {list(like.shape)}, which this model {has}; load it "
                "for the model that it was saved with, or start a new window"
            )
        return here
