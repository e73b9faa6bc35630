"""A hook before every module's forward that changes neither what runs nor what is said.

torch warns whoever calls a compiled module while there are global hooks that these fire once more.
Ours may: a module that is known is passed by.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module
from torch.utils.hooks import RemovableHandle

_TABLES = [name for name in vars(torch_module) if name.startswith(("_global_for", "_global_back"))]


class GlobalHook:
    """A registered hook; ``remove`` puts everything back."""

    def __init__(self, function: Callable[[nn.Module, Any], None]) -> None:
        self._handle: RemovableHandle = torch_module.register_module_forward_pre_hook(function)
        self._asked = torch_module._has_any_global_hook
        torch_module._has_any_global_hook = self._has_others
        _hooks.append(self)

    def _has_others(self) -> bool:
        own = {hook._handle.id for hook in _hooks}
        return any(
            isinstance(found := getattr(torch_module, table), dict) and set(found) - own
            for table in _TABLES
        )

    def remove(self) -> None:
        """Take it away; a second call does nothing."""
        if self in _hooks:
            _hooks.remove(self)
            self._handle.remove()
            torch_module._has_any_global_hook = self._asked


_hooks: list[GlobalHook] = []


def before_forward(function: Callable[[nn.Module, Any], None]) -> GlobalHook:
    """Call ``function(module, args)`` before every forward of every module in this process."""
    return GlobalHook(function)


def _forget_in_child() -> None:
    # Workers of a DataLoader do not train; what they call is not watched.
    for hook in list(_hooks):
        hook.remove()


os.register_at_fork(after_in_child=_forget_in_child)
