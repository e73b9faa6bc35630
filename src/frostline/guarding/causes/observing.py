"""What the process says of itself while a guard listens: loads, casts, ``apply``, saves, skips.

A few methods of torch's own classes are wrapped, and only while somebody listens. Nothing is hung
on modules: a hook on one of them would switch fast paths off, and would travel with copies.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from functools import partial, wraps
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from frostline.freezing import ignored
from frostline.guarding.causes.evidence import fingerprint


class Listener(Protocol):
    """What a guard hears. ``where`` is the ``file:line`` of the caller."""

    def loaded(self, module: nn.Module, keys: Mapping[str, Tensor | None], where: str) -> None:
        """``module.load_state_dict`` has run; ``keys`` with a few values of each."""

    def converted(self, module: nn.Module, where: str) -> None:
        """``module`` was cast or moved."""

    def applied(self, module: nn.Module, function: str, where: str) -> None:
        """``module.apply(function)`` has run."""

    def skipped(self, optimizer: Optimizer) -> None:
        """A ``GradScaler`` found infinite gradients and did not call ``optimizer.step``."""

    def saving(self, module: nn.Module) -> None:
        """``module.state_dict()`` is about to run; what this raises, the caller gets."""


Call = Callable[..., Any]

_listeners: list[Listener] = []
_lock = threading.RLock()
_here = threading.local()
_installed: dict[tuple[type, str], Call] = {}


def listen(listener: Listener) -> None:
    """Tell ``listener`` from now on."""
    with _lock:
        _listeners.append(listener)
        for place, wrapper in _WRAPPERS.items():
            _install(place, wrapper)


def unlisten(listener: Listener) -> None:
    """Tell it no more; what was wrapped goes back with the last listener."""
    with _lock:
        _listeners[:] = [other for other in _listeners if other is not listener]
        if not _listeners:
            _remove_all()


def _install(place: tuple[type, str], wrapper: Callable[[Call, Call, Any, Any, Any], Any]) -> None:
    cls, name = place
    current = vars(cls)[name]
    if current is _installed.get(place):
        return
    # If somebody patched on top of ours, that one is wrapped too: the outermost call alone tells.
    ours = _wrap(name, current, wrapper)
    _installed[place] = ours
    setattr(cls, name, ours)


def _remove_all() -> None:
    for (cls, name), ours in _installed.items():
        # Where somebody patched on top, ours stays below and passes every call through.
        if vars(cls)[name] is ours:
            setattr(cls, name, vars(ours)["__wrapped__"])
    _installed.clear()


def _wrap(name: str, original: Call, wrapper: Any) -> Call:
    @wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not _listeners:
            return original(self, *args, **kwargs)
        inside = vars(_here)
        if inside.get(name):
            return original(self, *args, **kwargs)
        inside[name] = True
        try:
            return wrapper(original, self, args, kwargs)
        finally:
            inside[name] = False

    return method


def _load(original: Call, module: nn.Module, args: Any, kwargs: Any) -> Any:
    try:
        return original(module, *args, **kwargs)
    finally:
        # A strict load that raises has loaded what fits.
        given = args[0] if args else kwargs.get("state_dict")
        if isinstance(given, Mapping):
            _tell_load(module, given)


def _tell_load(module: nn.Module, given: Mapping[str, Any]) -> None:
    keys = {key: fingerprint(value) for key, value in given.items()}
    where = ignored.caller()
    for listener in tuple(_listeners):
        listener.loaded(module, keys, where)


def _convert(original: Call, module: nn.Module, args: Any, kwargs: Any) -> Any:
    result = original(module, *args, **kwargs)
    where = ignored.caller()
    for listener in tuple(_listeners):
        listener.converted(module, where)
    return result


def _apply(original: Call, module: nn.Module, args: Any, kwargs: Any) -> Any:
    result = original(module, *args, **kwargs)
    function, where = _name_of(args[0] if args else kwargs.get("fn")), ignored.caller()
    for listener in tuple(_listeners):
        listener.applied(module, function, where)
    return result


def _name_of(function: Any) -> str:
    if isinstance(function, partial):
        return _name_of(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def _save(original: Call, module: nn.Module, args: Any, kwargs: Any) -> Any:
    for listener in tuple(_listeners):
        listener.saving(module)
    return original(module, *args, **kwargs)


def _scale(original: Call, scaler: GradScaler, args: Any, kwargs: Any) -> Any:
    result = original(scaler, *args, **kwargs)
    optimizer = args[0] if args else kwargs["optimizer"]
    if scaler.is_enabled() and _was_left_out(scaler, optimizer):
        for listener in tuple(_listeners):
            listener.skipped(optimizer)
    return result


def _was_left_out(scaler: GradScaler, optimizer: Optimizer) -> bool:
    # A fused optimizer is always called, and its hooks tell of it.
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    # torch has read these itself just now, so the device is not waited for again.
    found = scaler._per_optimizer_states[id(optimizer)]["found_inf_per_device"]
    return any(bool(value.item()) for value in found.values())


_WRAPPERS: dict[tuple[type, str], Any] = {
    (nn.Module, "load_state_dict"): _load,
    (nn.Module, "_apply"): _convert,
    (nn.Module, "apply"): _apply,
    (nn.Module, "state_dict"): _save,
    (GradScaler, "step"): _scale,
}


def _forget_in_child() -> None:
    # The guards of the parent go on there; here is only a copy of them.
    global _lock
    _lock = threading.RLock()
    _listeners.clear()
    _remove_all()
    vars(_here).clear()


os.register_at_fork(after_in_child=_forget_in_child)
