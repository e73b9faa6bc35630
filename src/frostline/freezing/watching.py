"""Modules that may write to themselves whatever the mode: their first forward is compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from frostline._results import Change
from frostline._state import same_bits
from frostline.errors import FrozenStateChanged
from frostline.freezing.machinery import Held, base_of, is_held_class, rebuild_held
from frostline.freezing.record import WATCH


class Watched(Held):
    """Machinery for classes that no registry knows.

    Before the first forward there is no evidence that a module leaves its buffers alone, and no
    flag stops one that does not. So that forward is compared, and a change is put back and named.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__
        if WATCH not in own or torch.compiler.is_compiling():
            return super().__call__(*args, **kwargs)
        name, before = own[WATCH], [(n, t, t.detach().clone()) for n, t in own_state(self)]
        output = super().__call__(*args, **kwargs)
        _compare(self, name, before)
        stop_watching(self)
        return output

    def __reduce_ex__(self, protocol: Any) -> Any:
        function, *rest = super().__reduce_ex__(protocol)
        return (rebuild_watched if function is rebuild_held else function, *rest)


def stop_watching(module: nn.Module) -> None:
    """Give ``module`` the held class that costs nothing in a call."""
    from frostline.freezing.held_class import held_class

    vars(module).pop(WATCH, None)
    if is_held_class(type(module)):
        module.__class__ = held_class(base_of(type(module)))


def rebuild_watched(base: type[nn.Module], *args: Any) -> nn.Module:
    """Like :func:`frostline.freezing.rebuild_held`, for copies of what was never called."""
    from frostline.freezing.held_class import held_class

    module: nn.Module = base.__new__(held_class(base, watched=True), *args)
    return module


def own_state(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers and plain tensor attributes that ``module`` itself holds, those with memory."""
    own = vars(module)
    found = [*module._buffers.items(), *((k, v) for k, v in own.items() if isinstance(v, Tensor))]
    return [(name, t) for name, t in found if t is not None and not t.is_meta]


def _compare(module: nn.Module, full_name: str, before: list[tuple[str, Tensor, Tensor]]) -> None:
    changed = [name for name, t, old in before if _put_back(module, name, t, old)]
    if not changed:
        return
    names = [f"{full_name}.{name}" if full_name else name for name in changed]
    base = type(module).__name__
    raise FrozenStateChanged(
        f"{names[0]} is frozen, and the forward of {base} wrote to it although the module is held "
        f"in eval mode; the old value was put back. Either leave it out: fl.freeze(model, ..., "
        f"exclude={full_name!r}), or say how it is held: "
        f"frostline.freezing.register_holder({base}, forward)",
        [Change(name, "value", cause=f"forward of {base}") for name in names],
    )


def _put_back(module: nn.Module, name: str, tensor: Tensor, old: Tensor) -> bool:
    """Undo what the forward did to one tensor; whether it did anything."""
    written = not same_bits(tensor, old)
    if written:
        with torch.no_grad():
            tensor.copy_(old)
    now = module._buffers.get(name)
    # A new tensor in a saved buffer is a write; elsewhere it is a cache that grew with its input.
    saved = name not in module._non_persistent_buffers_set
    rebound = saved and now is not None and now is not tensor and not same_bits(now, tensor)
    if rebound:
        module._buffers[name] = tensor
    return written or rebound
