"""What looks frozen and is written all the same by the next forward."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from frostline._names import join, named_modules
from frostline.behaviours.doing import Write
from frostline.behaviours.registry import behaviour
from frostline.errors import SelectionError
from frostline.freezing.record import get
from frostline.selection import FLAGGED, select


@dataclass(frozen=True, eq=False)
class Leak:
    """One tensor that looks frozen and will be written.

    Attributes:
        name: full name of the tensor.
        module: the module that writes it.
        write: what is written.
    """

    name: str
    module: nn.Module
    write: Write


def looks_frozen(model: nn.Module) -> set[int]:
    """Ids of the modules that :data:`frostline.FLAGGED` selects; none if no flag is off."""
    try:
        return {id(module) for _, module in select(model, FLAGGED).modules}
    except SelectionError:
        return set()


def follows_on_purpose(module: nn.Module) -> bool:
    """Whether it was frozen with ``stats="update"``: its statistics are meant to move."""
    record = get(module)
    return record is not None and any(hold.stats == "update" for hold in record.holds)


def leaks(model: nn.Module, *, training: bool | None = None) -> list[Leak]:
    """What the next forward writes in modules that look frozen, unless it is meant to.

    Args:
        model: the root.
        training: the mode to ask about; None asks about the mode that each module is in.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        >>> _ = net[0].requires_grad_(False)
        >>> [leak.name for leak in leaks(net)]
        ['0.running_mean', '0.running_var', '0.num_batches_tracked']
        >>> leaks(net.eval()), len(leaks(net, training=True))
        ([], 3)
    """
    frozen = looks_frozen(model)
    found = []
    parents = {id(child): module for module in model.modules() for child in module.children()}
    for name, module in named_modules(model) if frozen else ():
        doing = behaviour(module, parents.get(id(module))) if id(module) in frozen else None
        if doing is None or follows_on_purpose(module):
            continue
        asked = doing.training if training is None else training
        mode = doing.in_training if asked else doing.in_eval
        found += [Leak(join(name, write.tensor), module, write) for write in mode.writes]
    return found
