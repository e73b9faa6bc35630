"""A forward that the user's hooks do not see: of checks and measurements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def unseen(model: nn.Module) -> Iterator[None]:
    """Forward hooks are off inside, but for those of torch itself, which compute weights."""
    dicts = [
        getattr(module, name)
        for module in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks")
    ]
    kept = [(hooks, dict(hooks)) for hooks in dicts if hooks]
    for hooks, before in kept:
        for key, hook in before.items():
            if not _is_torchs(hook):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.clear()
            hooks.update(before)


def _is_torchs(hook: object) -> bool:
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return bool(module.partition(".")[0] == "torch")
