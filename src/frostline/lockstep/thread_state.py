"""What is in force for an OS thread or the process, taken along when another run goes on.

Several suspended forwards share one OS thread, so grad mode, autocast, function modes, hooks and
switches that one has turned would be met by the next. All private names of torch that this needs
stand here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch

_HOOKS = torch._C._autograd
Hooks = tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]


class ThreadState:
    """Grad mode, autocast, function modes, saved-tensor hooks, switches and random draws.

    Example:
        >>> state = ThreadState.take()
        >>> with torch.no_grad():
        ...     state.put()
        ...     torch.is_grad_enabled()
        True
    """

    __slots__ = ("autocast", "cache", "grad", "hooks", "modes", "random", "switches")

    def __init__(self) -> None:
        self.grad = torch.is_grad_enabled()
        self.cache = torch.is_autocast_cache_enabled()
        self.autocast = [
            (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in _devices()
        ]
        self.switches = [read() for read, _ in _SWITCHES]
        self.modes = _modes()
        self.hooks = _pop_hooks()
        _push_hooks(self.hooks)
        self.random = _random()

    @classmethod
    def take(cls) -> ThreadState:
        """The state as it is now."""
        return cls()

    def put(self) -> None:
        """Make it the state of this thread."""
        torch._C._set_grad_enabled(self.grad)
        torch.set_autocast_cache_enabled(self.cache)
        for device, enabled, dtype in self.autocast:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        for (read, write), value in zip(_SWITCHES, self.switches, strict=True):
            if read() != value:
                write(value)
        _put_modes(self.modes)
        _pop_hooks()
        _push_hooks(self.hooks)
        put_random(self.random)


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


# How each is read, and how it is set.
_SWITCHES: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda value: torch.set_anomaly_enabled(*value),
    ),
    (torch.get_default_dtype, torch.set_default_dtype),
    (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
    ),
    (lambda: warnings.filters, lambda filters: setattr(warnings, "filters", filters)),
    (torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.enable_flash_sdp),
    (torch.backends.cuda.mem_efficient_sdp_enabled, torch.backends.cuda.enable_mem_efficient_sdp),
    (torch.backends.cuda.math_sdp_enabled, torch.backends.cuda.enable_math_sdp),
    (torch.backends.cuda.cudnn_sdp_enabled, torch.backends.cuda.enable_cudnn_sdp),
)


def unmovable() -> str | None:
    """What is in force here and cannot be taken along, in words; None where nothing is."""
    if torch.is_inference_mode_enabled():
        return "torch.inference_mode()"
    if _functorch.peek_interpreter_stack() is not None:
        return "a transform of torch.func (grad, vmap, jvp)"
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode"
    return None


def _devices() -> tuple[str, ...]:
    return ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


def _modes() -> list[object]:
    count = torch._C._len_torch_function_stack()
    return [torch._C._get_function_stack_at(i) for i in range(count)]


def _put_modes(modes: list[object]) -> None:
    if _modes() == modes:
        return
    while torch._C._len_torch_function_stack():
        torch._C._pop_torch_function_stack()
    for mode in modes:
        torch._C._push_on_torch_function_stack(mode)


def _pop_hooks() -> list[Hooks]:
    """Outermost last."""
    found = []
    while (top := _HOOKS._top_saved_tensors_default_hooks(True)) is not None:
        found.append(top)
        _HOOKS._pop_saved_tensors_default_hooks()
    return found


def _push_hooks(hooks: list[Hooks]) -> None:
    for pack, unpack in reversed(hooks):
        _HOOKS._push_saved_tensors_default_hooks(pack, unpack)


def _random() -> tuple[Tensor, list[Tensor]]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), cuda


def put_random(random: tuple[Tensor, list[Tensor]]) -> None:
    """Set the global generators, CPU and CUDA."""
    cpu, cuda = random
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
