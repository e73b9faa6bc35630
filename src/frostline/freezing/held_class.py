"""Held classes: one per base class for the life of the process, and whose place is where.

A module's class is swapped for the held class of its own class. Where somebody else made the
object's class dynamically (parametrisations, FSDP2), the held class goes below theirs, by
re-basing it, which is safe because a held class is inert; never on top.
"""

from __future__ import annotations

import sys
import threading
from abc import ABCMeta
from typing import Any, TypeAlias

import torch
from torch import nn

from frostline.errors import FreezeError
from frostline.freezing import holders
from frostline.freezing.machinery import _BASE, Held, base_of, is_held_class
from frostline.freezing.watching import Watched

_lock = threading.Lock()
_Known: TypeAlias = "dict[tuple[type, bool], type[nn.Module]]"


def held_class(base: type[nn.Module], watched: bool = False) -> type[nn.Module]:
    """The held class of ``base``, or the one that compares its first forward; made once.

    Found through ``base.__subclasses__()``, which is weak: a cache would keep classes alive that
    belong to one instance, and a fresh class per freeze would make ``torch.compile`` recompile.
    """
    with _lock:
        for subclass in type.__subclasses__(base):
            ours = is_held_class(subclass) and base_of(subclass) is base
            if ours and issubclass(subclass, Watched) == watched:
                return subclass
        return _make(base, Watched if watched else holders.registered(base) or Held)


def _make(base: type[nn.Module], machinery: type[Held]) -> type[nn.Module]:
    body = {
        _BASE: base,
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
    }
    return _born(base, (*_layout(base), machinery, base), body)


def _born(base: type[nn.Module], bases: tuple[type, ...], body: dict[str, Any]) -> type[nn.Module]:
    meta = type(base)
    # A user's metaclass may register what it makes; only ABCMeta needs to see the class born.
    new = ABCMeta.__new__ if issubclass(meta, ABCMeta) else type.__new__
    made: type[nn.Module] = new(meta, base.__name__, bases, body)
    return made


def _layout(base: type[nn.Module]) -> tuple[type, ...]:
    """A first base that lays objects out as ``base`` does, where nn.Module's layout is not its own.

    Python takes the layout of an object from the first base, and swaps classes of equal layout
    only: that of ``class Base(abc.ABC, nn.Module)`` or ``(Generic[T], nn.Module)`` starts at ABC.
    """
    root: type = base
    while root.__base__ is not None and root.__base__.__dictoffset__ != 0:
        root = root.__base__
    first = root.__base__
    if first is None or first is object:
        return ()
    body = {"__init_subclass__": Held.__dict__["__init_subclass__"]}
    if "__orig_bases__" in root.__dict__:
        # Generic asks its direct subclasses for this.
        body["__orig_bases__"] = root.__dict__["__orig_bases__"]
    return (_born(base, (first, nn.Module), body),)


def swap_in(
    name: str, module: nn.Module, watched: bool = False, known: _Known | None = None
) -> None:
    """Put the held class into the class of ``module``, at its place.

    A class that somebody else made for the object is not watched.

    Args:
        name: full name of the module, for messages.
        module: the module.
        watched: whether its first forward is to be compared.
        known: held classes that were found for other modules already; filled.

    Raises:
        FreezeError: if Python refuses to change the class of the object.
    """
    cls = type(module)
    found = known.get((cls, watched)) if known is not None else None
    if found is None:
        if issubclass(cls, Held):
            return
        if is_made_by_others(cls):
            _rebase(cls)
            return
        found = held_class(cls, watched)
        if known is not None:
            known[cls, watched] = found
    try:
        module.__class__ = found
    except TypeError as error:
        raise FreezeError(
            f"{name or 'the model itself'} ({cls.__name__}) cannot be held: {error}. Leave it out: "
            f"fl.freeze(model, ..., exclude={name!r})"
        ) from error


def swap_out(module: nn.Module) -> None:
    """Give ``module`` its own class back, if the class on top is still ours."""
    cls = type(module)
    if is_held_class(cls):
        module.__class__ = base_of(cls)


def is_made_by_others(cls: type[nn.Module]) -> bool:
    """Whether a library made this class for its own ends, at run time.

    Such a class is called like none that its module defines, and it brings no forward of its own:
    torch parametrisations, FSDP2 and the composable DDP are made like this. A class that torch made
    may have got a forward: layers of transformers give one to each subclass that is born.
    """
    own_forward = "forward" in cls.__dict__ and not cls.__module__.startswith("torch.")
    if "<locals>" in cls.__qualname__ or own_forward:
        return False
    home = sys.modules.get(cls.__module__)
    found: object = home
    for part in cls.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is not cls and cls.__bases__ != (nn.Module,)


def _rebase(cls: type[nn.Module]) -> None:
    """Exchange the user's class among the bases of ``cls`` for its held class."""
    bases = list(cls.__bases__)
    # The user's class comes last: (FSDPModule, Linear), (Linear,).
    own = bases[-1]
    if is_made_by_others(own):
        _rebase(own)
        return
    bases[-1] = held_class(own)
    cls.__bases__ = tuple(bases)


_RARE = (torch.jit.ScriptModule, nn.modules.lazy.LazyModuleMixin)


def is_rare(cls: type) -> bool:
    """Whether objects of ``cls`` may be such that they cannot be held."""
    return issubclass(cls, _RARE)


def cannot_be_held(module: nn.Module) -> str | None:
    """Why the class of ``module`` must never be swapped, or None."""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is a ScriptModule; freeze the Python model and script it after that"
    if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params():
        return "its parameters are not materialised yet; run one forward pass first"
    return None


def keeps_its_class(module: nn.Module) -> bool:
    """Whether the object writes to its own class, so that only what is below it can be held."""
    return isinstance(module, torch.fx.GraphModule)
