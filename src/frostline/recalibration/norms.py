"""Which norms of a model take part, and which are left as they are, and why."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from frostline._names import named_modules
from frostline.behaviours import behaviour
from frostline.errors import SelectionError
from frostline.freezing.holders import tracks_statistics
from frostline.selection import Selector, describe, select

HELD = "held by fl.freeze"
NOT_TRACKING = "track_running_stats is False"
ALWAYS_RUNNING = "never updates its statistics"
NOT_CALLED = "no batch reached it"


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm that takes part.

    Attributes:
        name: full name.
        module: the module itself.
        mean: its running_mean, [channels].
        variance: its running_var, [channels].
        counter: its num_batches_tracked, where it has one.
    """

    name: str
    module: nn.Module
    mean: Tensor
    variance: Tensor
    counter: Tensor | None

    @classmethod
    def of(cls, name: str, module: nn.Module) -> Norm:
        """Read from the buffers of ``module``."""
        buffers = module._buffers
        mean, variance = buffers["running_mean"], buffers["running_var"]
        assert mean is not None  # noqa: S101
        assert variance is not None  # noqa: S101
        return cls(name, module, mean, variance, buffers.get("num_batches_tracked"))


def find(model: nn.Module, selector: Selector) -> tuple[list[Norm], dict[str, str]]:
    """The norms that take part, and a reason for each selected one that does not, by its name.

    Raises:
        SelectionError: there is none to take part.
    """
    everywhere = [(name, m) for name, m in named_modules(model) if tracks_statistics(m)]
    modules = {id(module) for _, module in select(model, selector).modules}
    chosen = [(name, module) for name, module in everywhere if id(module) in modules]
    reasons = [(name, module, _left(module)) for name, module in chosen]
    left = {name: why for name, _, why in reasons if why is not None}
    norms = [Norm.of(name, module) for name, module, why in reasons if why is None]
    if not norms:
        raise SelectionError(_nobody(model, selector, [name for name, _ in everywhere], left))
    return norms, left


def _left(module: nn.Module) -> str | None:
    """Why a norm with running statistics takes no part; None if it does."""
    known = behaviour(module)
    if known is not None and known.held:
        return HELD
    if getattr(module, "track_running_stats", True) is False:
        return NOT_TRACKING
    if known is not None and known.in_training.statistics == "running":
        return ALWAYS_RUNNING
    return None


def _nobody(
    model: nn.Module, selector: Selector, everywhere: list[str], left: dict[str, str]
) -> str:
    kind = type(model).__name__
    if not everywhere:
        return f"{kind} has no norm with running statistics, so there is nothing to recalibrate"
    if not left:
        first = ", ".join(repr(name) for name in everywhere[:3])
        return (
            f"there is no norm with running statistics in {describe(selector)} of this {kind}. "
            f"Those that it has: {first}" + (", ..." if len(everywhere) > 3 else "")
        )
    name, why = next(iter(left.items()))
    mend = (
        ". What is held does not change: recalibrate first and freeze after that, "
        "part.undo(); fl.recalibrate(model, batches); part = fl.freeze(model, ...)"
        if why == HELD
        else ""
    )
    return (
        f"no norm with running statistics in {describe(selector)} of this {kind} can be "
        f"recalibrated; {name}: {why}{mend}"
    )
