"""Calls of norms that look across the batch, seen at the function and not at the module.

A module's ``forward`` may do more than the norm (timm's fuse activation and dropout), or call the
function by itself; so what is intercepted is ``F.batch_norm`` and what lies below it, whoever calls
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from frostline.errors import AccumulationError


@dataclass(frozen=True, eq=False, slots=True)
class NormCall:
    """A call that normalises with the batch, not with running statistics.

    Attributes:
        input: [samples, channels, ...].
        running_mean: the buffer that the call would update, [channels]; None if there is none.
        running_var: likewise.
        weight: [channels] or None.
        bias: [channels] or None.
        momentum: weight of what is new in the update.
        eps: added to the variance.
        grad: whether gradients are recorded.
    """

    input: Tensor
    running_mean: Tensor | None
    running_var: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    momentum: float
    eps: float
    grad: bool = field(default_factory=torch.is_grad_enabled)

    def without_update(self) -> NormCall:
        """The same call, but it writes no running statistics."""
        return replace(self, running_mean=None, running_var=None)


class NormCalls(TorchFunctionMode):
    """While it is active, every call of a norm that looks across the batch comes to a method here.

    Subclasses answer the calls; what they do not override happens as it would without.

    Args:
        models: their ``num_batches_tracked`` counters are known.

    Example:
        >>> class Count(NormCalls):
        ...     seen = 0
        ...     def batch_norm(self, call):
        ...         self.seen += 1
        ...         return super().batch_norm(call)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> with Count(net) as mode:
        ...     _ = net(torch.randn(4, 2)), net.eval()(torch.randn(4, 2))
        >>> mode.seen
        1
    """

    def __init__(self, *models: nn.Module) -> None:
        super().__init__()
        self._counters = {
            id(counter)
            for model in models
            for module in model.modules()
            if isinstance(counter := getattr(module, "num_batches_tracked", None), Tensor)
        }

    def batch_norm(self, call: NormCall) -> Tensor:
        """A batch norm that uses the statistics of its batch."""
        return native_batch_norm(call)

    def instance_norm(self, call: NormCall) -> Tensor:
        """An instance norm that uses its own statistics and updates running ones."""
        return native_instance_norm(call)

    def counted(self, counter: Tensor, add: Callable[[], Tensor]) -> Tensor:
        """A norm counts this batch: ``add`` does so."""
        return add()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Answer calls of norms, pass all else on."""
        named = kwargs or {}
        read = _READERS.get(func)
        if read is not None:
            call = read(*args, **named)
            if call is not None:
                norm = self.instance_norm if read is _read_instance else self.batch_norm
                return norm(call)
        elif func in _COUNTING and id(args[0]) in self._counters:
            return self.counted(args[0], lambda: func(*args, **named))
        return func(*args, **named)


def with_fresh_buffers(call: NormCall) -> NormCall:
    """The same call with buffers of its own, which hold its mean and variance afterwards."""
    buffers = (
        None if buffer is None else torch.zeros_like(buffer)
        for buffer in (call.running_mean, call.running_var)
    )
    mean, variance = buffers
    return replace(call, running_mean=mean, running_var=variance, momentum=1.0)


def native_batch_norm(call: NormCall) -> Tensor:
    """What torch does for this call, update of the running statistics included."""
    return F.batch_norm(
        call.input, call.running_mean, call.running_var, call.weight, call.bias,
        True, call.momentum, call.eps,
    )  # fmt: skip


def native_instance_norm(call: NormCall) -> Tensor:
    """What torch does for this call, update of the running statistics included."""
    return F.instance_norm(
        call.input, call.running_mean, call.running_var, call.weight, call.bias,
        True, call.momentum, call.eps,
    )  # fmt: skip


# Each with the signature of the function that it stands for, since callers pass by place or name.


def _read_functional(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> NormCall | None:
    if not training:
        return None
    return NormCall(input, running_mean, running_var, weight, bias, momentum, eps)


def _read_builtin(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = True,
) -> NormCall | None:
    return _read_functional(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _read_instance(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> NormCall | None:
    if not use_input_stats or running_mean is None:
        return None  # each sample by itself, and nothing is written
    return NormCall(input, running_mean, running_var, weight, bias, momentum, eps)


def _refuse(*args: Any, **named: Any) -> None:
    raise AccumulationError(
        "a norm is called below torch.batch_norm (native_batch_norm or a kernel of one device), "
        "where its arguments cannot be told apart; call torch.nn.functional.batch_norm instead"
    )


_READERS: dict[Any, Callable[..., NormCall | None]] = {
    F.batch_norm: _read_functional,
    torch.batch_norm: _read_builtin,
    torch.ops.aten.batch_norm: _read_builtin,
    torch.ops.aten.batch_norm.default: _read_builtin,
    F.instance_norm: _read_instance,
    torch.native_batch_norm: _refuse,
    torch.ops.aten.native_batch_norm: _refuse,
    torch.ops.aten.native_batch_norm.default: _refuse,
    torch.ops.aten._native_batch_norm_legit: _refuse,
    torch.ops.aten._native_batch_norm_legit.default: _refuse,
}
_COUNTING = (Tensor.add_, Tensor.__iadd__)
