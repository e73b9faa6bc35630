"""The plain PyTorch that does what a part does, for one model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from frostline.freezing import holders
from frostline.freezing.record import get

_TEMPLATE = '''\
FROZEN = [{frozen}
]
EVAL = [{held}
]
BATCH_STATISTICS = [{batch}
]


def freeze(model):
    """Freeze these parameters and keep these modules in eval mode through every train()."""
    for name in FROZEN:
        parameter = model.get_parameter(name)
        parameter.requires_grad_(False)
        parameter.grad = None  # an optimizer looks at the gradient, never at the flag
    for name in BATCH_STATISTICS:
        model.get_submodule(name).track_running_stats = False
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


def text(model: nn.Module, part: str, parameters: Iterable[nn.Parameter]) -> str:
    """Text that defines ``freeze(model)`` for these parameters, and for what ``part`` (id) holds.

    What plain PyTorch cannot hold stands in a comment at the end.
    """
    frozen = {id(parameter) for parameter in parameters}
    held: list[str] = []
    batch: list[str] = []
    beyond: list[str] = []
    for name, module in model.named_modules():
        record = get(module)
        if record is None or all(hold.part != part for hold in record.holds):
            continue
        if record.eval:
            held.append(name)
        if record.batch_stats:
            (beyond if isinstance(module, _INSTANCE_NORM) else batch).append(name)
        elif record.eval and holders.writes_in_eval(module):
            beyond.append(name)
    code = _TEMPLATE.format(
        frozen=_lines(name for name, p in model.named_parameters() if id(p) in frozen),
        held=_lines(held),
        batch=_lines(batch),
    )
    return code + "".join(
        f"\n# Not held by this code: {name!r} writes to itself" for name in beyond
    )


_INSTANCE_NORM = nn.modules.instancenorm._InstanceNorm


def _lines(names: Iterable[str]) -> str:
    return "".join(f"\n    {name!r}," for name in names)
