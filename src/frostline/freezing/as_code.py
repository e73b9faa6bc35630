"""The plain PyTorch that does what a part does, for one model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from frostline.freezing.part import Terms

_TEMPLATE = '''\
FROZEN = [{frozen}
]
EVAL = [{held}
]


def freeze(model):
    """Freeze these parameters and keep these modules in eval mode through every train()."""
    for name in FROZEN:
        parameter = model.get_parameter(name)
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer looks at the gradient, never at the flag
    _keep_eval(model)

    base = type(model)

    class Frozen(base):
        def train(self, mode=True):
            base.train(self, mode)
            _keep_eval(self)  # train() has just undone it
            return self

    Frozen.__name__, Frozen.__qualname__ = base.__name__, base.__qualname__
    model.__class__ = Frozen
    return model


def _keep_eval(model):
    for name in EVAL:
        model.get_submodule(name).training = False
'''


def text(terms: Terms, modules: Mapping[str, nn.Module]) -> str:
    """Text that defines ``freeze(model)`` for this part."""
    frozen = _lines(terms.frozen)
    held = _lines(name for name in terms.held if name in modules)
    return _TEMPLATE.format(frozen=frozen, held=held)


def _lines(names: Iterable[str]) -> str:
    return "".join(f"\n    {name!r}," for name in names)
