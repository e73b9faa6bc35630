"""What becomes of running statistics while the microbatches of a window go by.

Under all of these each microbatch is normalised with its own statistics, so gradients are not the
big batch's; they differ in what the buffers of the norms hold afterwards. With momentum m and K
microbatches:

plain        K updates, as torch makes them: (1 - m)^K of the old statistics is left.
compensated  K updates with m' = 1 - (1 - m)^(1/K): 1 - m is left, as after one big batch. That
             mends the mean, up to the order of the microbatches; the variance within a microbatch
             stays too small, by about rho / n (n samples whose values correlate by rho).
deferred     one update for each call of a norm, from the moments of all microbatches together: what
             the big batch would leave, given the same inputs of the norm.

Sources: Chan, Golub and LeVeque 1983 for the merging; Huang et al. 2019 (GPipe) for one update a
mini-batch, which torchgpipe made with squares and a biased variance.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from frostline._state import write_bits
from frostline.accumulation.statistics.measuring import Measuring, Waiting
from frostline.accumulation.statistics.windows import (
    BatchNorm,
    Counters,
    Names,
    RunningStatistics,
    put_back,
)
from frostline.errors import FrostlineWarning
from frostline.lockstep.norm_calls import (
    NormCall,
    NormCalls,
    native_batch_norm,
    native_instance_norm,
)


def policy(batchnorm: BatchNorm, model: nn.Module) -> RunningStatistics:
    """The running statistics of ``model`` under ``batchnorm``, with no window open.

    Warns:
        FrostlineWarning: the model is compiled, and will run without its compiled code.
    """
    kinds = {kind.batchnorm: kind for kind in (Plain, Compensated, Deferred)}
    if batchnorm != "plain" and any(_is_compiled(module) for module in model.modules()):
        warnings.warn(
            f'batchnorm="{batchnorm}" looks at each call of a norm, which compiled code hides: the '
            'model runs as if it were not compiled. batchnorm="plain" runs the compiled code',
            FrostlineWarning,
            stacklevel=3,
        )
    return kinds[batchnorm](model)


def _is_compiled(module: nn.Module) -> bool:
    return "_orig_mod" in module._modules or module._compiled_call_impl is not None


def _eagerly() -> AbstractContextManager[object]:
    # Compiled code would bake in what it saw at the first call. If dynamo was never loaded, nothing
    # is compiled, and loading it takes long.
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance


class Plain(RunningStatistics):
    """As torch does: each microbatch updates with the momentum of the norm, and is counted."""

    batchnorm: BatchNorm = "plain"


class Compensated(RunningStatistics):
    """Each microbatch updates with the momentum m' of which K make up m, and is counted.

    A norm with momentum None averages over all batches that it ever saw, which needs no mending: it
    updates as torch does, and counts microbatches as batches. What a checkpoint runs a second time
    in backward updates nothing.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1, momentum=0.1))
        >>> _ = net[0].running_mean.fill_(1.0)
        >>> statistics = Compensated(net)
        >>> for microbatch in torch.tensor([[-1.0], [1.0]] * 4).chunk(4):
        ...     with statistics.forward(4):
        ...         _ = net(microbatch)
        >>> net[0].running_mean
        tensor([0.9000])
    """

    batchnorm: BatchNorm = "compensated"

    @contextmanager
    def _forward(self, count: int) -> Iterator[Collection[int]]:
        with _eagerly(), _Compensating(self._model, count, self._keep) as mode:
            yield mode.written

    @contextmanager
    def backward(self) -> Iterator[None]:
        now = [replace(kept, value=kept.tensor.clone()) for kept in self._before.values()]
        with _eagerly():
            yield
        put_back(now)


class _Compensating(NormCalls):
    """Norms update with the momentum of which ``count`` make up their own."""

    def __init__(self, model: nn.Module, count: int, keep: Callable[..., None]) -> None:
        super().__init__(model)
        self.written: set[int] = set()
        self._count, self._keep = count, keep
        self._cumulative = {
            id(getattr(module, "running_mean", None))
            for module in model.modules()
            if getattr(module, "momentum", 0.0) is None
        }

    def batch_norm(self, call: NormCall) -> Tensor:
        return native_batch_norm(self._compensated(call))

    def instance_norm(self, call: NormCall) -> Tensor:
        return native_instance_norm(self._compensated(call))

    def _compensated(self, call: NormCall) -> NormCall:
        self._keep(call.running_mean, call.running_var)
        self.written |= {id(call.running_mean), id(call.running_var)}
        if id(call.running_mean) in self._cumulative:
            return call
        return replace(call, momentum=1 - (1 - call.momentum) ** (1 / self._count))


class Deferred(RunningStatistics):
    """One update for each call of a norm in a forward, from all microbatches together.

    The counter goes up by one for each call and window, and shows inside a forward what it would
    show in the big batch's; so momentum None works. What was seen is kept apart from the model,
    which has the statistics and the state dict of before until :meth:`commit`.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1, momentum=1.0))
        >>> statistics = Deferred(net)
        >>> for microbatch in torch.tensor([[1.0], [2.0], [3.0], [6.0]]).chunk(2):
        ...     with statistics.forward(2):
        ...         _ = net(microbatch)
        >>> statistics.commit()
        >>> net[0].running_mean, net[0].running_var, net[0].num_batches_tracked
        (tensor([3.]), tensor([4.6667]), tensor(1))
    """

    batchnorm: BatchNorm = "deferred"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._waiting: dict[tuple[int, int], Waiting] = {}
        self._steps: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def _forward(self, count: int) -> Iterator[Collection[int]]:
        with (
            _eagerly(),
            Counters(self._model) as counters,
            Measuring(self._model, self._tell),
        ):
            yield ()
            self._count(counters.steps())

    @contextmanager
    def backward(self) -> Iterator[None]:
        with _eagerly():
            yield
        put_back(self._before.values())

    def _tell(self, waiting: Waiting) -> None:
        self._keep(*waiting.buffers)
        self._waiting[waiting.key] = waiting.after(self._waiting.get(waiting.key))

    def _count(self, steps: list[tuple[Tensor, Tensor]]) -> None:
        for counter, new in steps:
            _, most = self._steps.get(id(counter), (counter, new))
            self._steps[id(counter)] = counter, torch.maximum(most, new)

    def commit(self) -> None:
        for waiting in self._waiting.values():
            waiting.write()
        for counter, steps in self._steps.values():
            write_bits(counter, counter + steps)
        self._forget()
        super().commit()

    def discard(self) -> None:
        self._forget()
        super().discard()

    def _forget(self) -> None:
        self._waiting, self._steps = {}, {}

    def state_dict(self) -> dict[str, Any]:
        names = Names(self._model)
        return super().state_dict() | {
            "waiting": [waiting.to_dict(names.of) for waiting in self._waiting.values()],
            "steps": {names.of(counter): steps for counter, steps in self._steps.values()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._forget()
        names = Names(self._model)
        for entry in state["waiting"]:
            self._tell(Waiting.from_dict(entry, names.tensor))
        for name, steps in state["steps"].items():
            counter = names.tensor(name, steps)
            self._count([(counter, steps.to(counter))])
