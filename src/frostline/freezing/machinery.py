"""The machinery of a held class: inert without a record in the object's ``__dict__``."""

from __future__ import annotations

import copyreg
import sys
from types import FrameType
from typing import Any

from torch import nn

from frostline.freezing import ignored, live_parts
from frostline.freezing.record import ASKED, EVAL, RECORD, asked_modes

_BASE = "_frostline_base"


class Held(nn.Module):
    """Mixed in front of a module's own class; overrides nothing but who decides on ``training``."""

    # TorchScript cannot compile a property that reads __dict__.
    __jit_unused_properties__ = ["training"]  # noqa: RUF012  (torch reads a list)

    def __init_subclass__(cls) -> None:
        # The user's __init_subclass__ (a registry by class name, say) must not see held classes.
        pass

    @property
    def training(self) -> bool:
        # One expression: this runs at every call of every held module.
        return EVAL not in self.__dict__ and _own_mode(self)

    @training.setter
    def training(self, mode: bool) -> None:
        own = self.__dict__
        if EVAL not in own:
            own["training"] = mode
            return
        asked, before = asked_modes(self, own[RECORD])
        # Trainers save each mode before a validation and write it back after it. What they read
        # of a held module was False: no wish for eval, but for what was there before.
        wish = mode or _through_train()
        own[ASKED] = (mode, asked) if wish else (before, before)
        if mode:
            ignored.note(self, "train()")
        live_parts.mode_was_written(self, mode)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Only the reference to our class is replaced; a base's own reduction stays in charge.
        reduced = super().__reduce_ex__(protocol)
        cls = type(self)
        if not is_held_class(cls) or not isinstance(reduced, tuple):
            return reduced
        function, args, *rest = reduced
        if function is copyreg.__newobj__ and args[0] is cls:  # type: ignore[attr-defined]
            return (rebuild_held, (base_of(cls), *args[1:]), *rest)
        if function is cls:
            return (rebuild_held_by_call, (base_of(cls), *args), *rest)
        return reduced


def _own_mode(module: nn.Module) -> bool:
    if "training" not in module.__dict__:
        raise AttributeError("training")
    mode: bool = module.__dict__["training"]
    return mode


def _through_train() -> bool:
    """Whether ``train()`` or ``eval()`` writes the mode, and not an assignment from elsewhere."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name in ("__setattr__", "training"):
        frame = frame.f_back
    if frame is None or frame.f_code.co_name != "train":
        return False
    # A loop of the user's own may be called train, too: a method of the class is meant.
    first = [frame.f_locals.get(name) for name in frame.f_code.co_varnames[:1]]
    methods = [vars(cls).get("train") for owner in first for cls in type(owner).__mro__]
    return any(getattr(method, "__code__", None) is frame.f_code for method in methods)


def is_held_class(cls: type) -> bool:
    """Whether frostline made ``cls`` itself (and not merely one of its bases)."""
    return _BASE in cls.__dict__


def base_of(held: type) -> type[nn.Module]:
    """The user's class behind a held class."""
    base: type[nn.Module] = held.__dict__[_BASE]
    return base


def rebuild_held(base: type[nn.Module], *args: Any) -> nn.Module:
    """Make an empty object of the held class of ``base``; pickles of held models name this."""
    from frostline.freezing.held_class import held_class

    module: nn.Module = base.__new__(held_class(base), *args)
    return module


def rebuild_held_by_call(base: type[nn.Module], *args: Any) -> nn.Module:
    """Like :func:`rebuild_held`, for classes whose own ``__reduce__`` calls the class."""
    from frostline.freezing.held_class import held_class

    return held_class(base)(*args)
