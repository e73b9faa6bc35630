"""Lockstep by threads, as obvious as can be: the oracle for the engines of exact accumulation.

One thread a microbatch, one baton: only who holds it runs. At a norm that uses its batch everybody
waits, the inputs are concatenated, torch's own norm runs on the whole, and each goes on with its
piece. Then one backward through all of it. It shares no line with the library.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tests.accumulation.exact.cases import Batch, size_of

Norm = Callable[..., Tensor]
Join = Callable[..., list[Tensor]]


def concatenated(inputs: list[Tensor], *arguments: Any) -> list[Tensor]:
    """The pieces of the norm of all inputs: the big batch."""
    whole = F.batch_norm(torch.cat(inputs), *arguments)
    # Pieces of their own, since who writes into a view of several is refused.
    return [piece.clone() for piece in whole.split([len(x) for x in inputs])]


def constants(
    inputs: list[Tensor], mean: Any, var: Any, weight: Any, bias: Any, training: bool, *rest: float
) -> list[Tensor]:
    """The window's statistics, but no gradient goes through them: right losses, wrong gradients."""
    whole = torch.cat(inputs).detach()
    F.batch_norm(whole, mean, var, weight, bias, training, *rest)
    over = [d for d in range(whole.dim()) if d != 1]
    window = torch.var_mean(whole, over, correction=0)
    return [F.batch_norm(x, window[1], window[0], weight, bias, False, *rest) for x in inputs]


class Lockstep:
    """Runs functions on threads of their own, one at a time, in step at their calls of norms."""

    def __init__(self, count: int, join: Join) -> None:
        self.join = join
        self.batons = [threading.Semaphore(0) for _ in range(count)]
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}
        self.results: dict[int, Tensor] = {}
        self.errors: list[BaseException] = []
        self.running = set(range(count))

    def run(self, functions: list[Callable[[], Tensor]]) -> list[Tensor]:
        threads = [
            threading.Thread(target=self._runner, args=(rank, function), daemon=True)
            for rank, function in enumerate(functions)
        ]
        for thread in threads:
            thread.start()
        self.batons[0].release()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return [self.results[rank] for rank in range(len(functions))]

    def _runner(self, rank: int, function: Callable[[], Tensor]) -> None:
        self.batons[rank].acquire()
        try:
            self._go_on()
            with _Norms(self, rank):
                self.results[rank] = function()
        except BaseException as error:
            self.errors.append(error)
        self.running.remove(rank)
        self._pass_on(rank)

    def _pass_on(self, rank: int) -> None:
        count = len(self.batons)
        after = ((rank + step) % count for step in range(1, count + 1))
        receiver = next((other for other in after if other in self.running), None)
        if receiver is not None:
            self.batons[receiver].release()

    def _go_on(self) -> None:
        if self.errors:
            raise RuntimeError("another microbatch failed")

    def norm(self, rank: int, x: Tensor, *arguments: Any) -> Tensor:
        self.inputs[rank] = x
        if rank == len(self.batons) - 1:
            assert self.running == self.inputs.keys(), "microbatches make different calls"
            inputs = [self.inputs[other] for other in range(len(self.batons))]
            self.outputs = dict(enumerate(self.join(inputs, *arguments)))
            self.inputs = {}
        self._pass_on(rank)
        self.batons[rank].acquire()
        self._go_on()
        assert rank in self.outputs, "microbatches make different calls"
        return self.outputs.pop(rank)


class _Norms(TorchFunctionMode):
    """Brings one thread's norms to all; of the counters only the first thread's count."""

    def __init__(self, lockstep: Lockstep, rank: int) -> None:
        super().__init__()
        self.lockstep, self.rank = lockstep, rank

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func is F.batch_norm:
            return self._functional(*args, **named)
        if func is torch.batch_norm:
            x, weight, bias, mean, var, *rest = args
            return self._functional(x, mean, var, weight, bias, *rest[:3])
        if func is Tensor.add_ and self.rank and args[0].dtype == torch.int64:
            return args[0]
        return func(*args, **named)

    def _functional(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        arguments = (running_mean, running_var, weight, bias, training, momentum, eps)
        if not training:
            return F.batch_norm(x, *arguments)
        return self.lockstep.norm(self.rank, x, *arguments)


def in_lockstep(
    model: nn.Module,
    loss: Callable[..., Tensor],
    microbatches: list[Batch],
    *,
    join: Join = concatenated,
) -> Tensor:
    """The window's loss, detached; gradients and statistics are in the model."""
    total = sum(map(size_of, microbatches))
    losses = Lockstep(len(microbatches), join).run(
        [lambda batch=batch: loss(model, batch) for batch in microbatches]
    )
    weights = [size_of(batch) / total for batch in microbatches]
    whole = torch.stack([x * w for x, w in zip(losses, weights, strict=True)]).sum()
    whole.backward()
    return whole.detach()
