"""What the ranks of a window do together: they exchange gradients once, and add up their counts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frostline.errors import AccumulationError


class Ranks:
    """The ranks over which a model averages its gradients; one, if nothing in it does.

    Args:
        model: DistributedDataParallel or sharded by ``fully_shard`` (FSDP2), itself or in parts.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._replicated = [m for m in modules if isinstance(m, DistributedDataParallel)]
        self._sharded: list[Any] = [m for m in modules if hasattr(m, "set_requires_gradient_sync")]
        together = bool(self._replicated or self._sharded) and dist.is_initialized()
        self._group = self._replicated[0].process_group if self._replicated else None
        self.count = dist.get_world_size(self._group) if together else 1

    @property
    def modules(self) -> list[nn.Module]:
        """Those that exchange gradients."""
        return [*self._replicated, *self._sharded]

    @contextmanager
    def exchanging(self, *, now: bool) -> Iterator[None]:
        """Whether gradients are exchanged; round the forward and round the backward."""
        with ExitStack() as stack:
            for module in () if now else self._replicated:
                stack.enter_context(module.no_sync())
            for module in () if now else self._sharded:
                module.set_requires_gradient_sync(False, recurse=False)
                stack.callback(module.set_requires_gradient_sync, True, recurse=False)
            yield

    def mean(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The mean over ranks of each of the values; every rank has to ask."""
        if self.count == 1:
            return list(values)
        both = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(both, group=self._group)
        return [float(value) / self.count for value in both]

    def refuse_sharded(self, what: str) -> None:
        """Raise under FSDP2, which keeps gradients to itself until the last backward of a window.

        Raises:
            AccumulationError: an open window cannot be ``what``.
        """
        if self._sharded:
            raise AccumulationError(
                f"under FSDP2 an open window cannot be {what}. End it with its last microbatch: "
                "with acc.microbatch(last=True): ..."
            )

    def exchange(self) -> None:
        """Average the gradients of a window that ended without; every rank has to.

        Raises:
            AccumulationError: under FSDP2, which exchanges in a backward only.
        """
        if self.count == 1:
            return
        self.refuse_sharded("stepped before its last microbatch is announced")
        for parameter in {p: None for m in self._replicated for p in m.parameters()}:
            if parameter.requires_grad:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad, group=self._group)
                parameter.grad.div_(self.count)
