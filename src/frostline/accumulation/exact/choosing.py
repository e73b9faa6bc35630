"""Which engine runs an exact window: by ``offload=``, or by predicted memory."""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from frostline.accumulation.arguments import Offload
from frostline.accumulation.exact.engines import Engine, Joined, Windowed
from frostline.accumulation.exact.forwards import Forwards
from frostline.accumulation.exact.planning import is_on_device, plan_for
from frostline.lockstep.storing import DiskStore, HostStore, Store


def engine_for(
    forwards: Forwards, offload: Offload | None, memory: int | None, *, can_join: bool
) -> Engine:
    """The engine for ``offload``.

    Args:
        forwards: of the window.
        offload: as in ``accumulate``.
        memory: bytes that "auto" may use; None for what is free.
        can_join: the loss of the microbatches joined is known to be the window's.
    """
    model = forwards.model
    if offload == "auto":
        return plan_for(forwards, memory, can_join=can_join).engine()
    if offload == "disk":
        return offloaded(DiskStore(), model)
    if offload == "cpu" and is_on_device(model):
        return offloaded(HostStore(), model)
    return Joined()


def offloaded(store: Store, model: nn.Module) -> Engine:
    """One microbatch at a time, but with one backward where ranks exchange gradients in it."""
    return Joined(store) if isinstance(model, DistributedDataParallel) else Windowed(store)
