"""``parts``: the parts of a model, also for modules that left their model while frozen.

A copy of a submodule carries its holds, but the part belongs to the model it was taken from. So
does a submodule whose model is gone. The records are enough to make a part for what is left.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from frostline._names import NamedTensor, named_modules, named_tensors
from frostline.freezing import arguments, live_parts
from frostline.freezing.part import FrozenPart, Terms
from frostline.freezing.record import PARTS, Hold, covers, get, keeps_buffers


def parts(model: nn.Module) -> list[FrozenPart]:
    """The parts of a model: those one did not keep, and those of a copy or an unpickled model.

    Modules that were copied or taken out of a frozen model get a part of their own, unsealed.

    Example:
        >>> import copy, torch, frostline as fl
        >>> net = torch.nn.Linear(2, 1)
        >>> part = fl.freeze(net)
        >>> fl.parts(net) == [part], fl.parts(copy.deepcopy(net)) == [part]
        (True, False)
    """
    arguments.check_model(model, "parts")
    _adopt(model)
    return known(model)


def known(model: nn.Module) -> list[FrozenPart]:
    """The parts that a model has already; unlike :func:`parts`, this leaves it as it is."""
    found: list[FrozenPart] = []
    for module in model.modules():
        # A shallow copy of a module shares the entry, but the parts are those of the original.
        found += [part for part in vars(module).get(PARTS, ()) if part.is_of(module)]
    return found


def _adopt(model: nn.Module) -> None:
    for id_ in sorted(_ids(model) - _answered(model)):
        part = FrozenPart(model, _terms(model, id_))
        part.bind()
        vars(model)[PARTS] = (*vars(model).get(PARTS, ()), part)


def _ids(model: nn.Module) -> set[str]:
    records = [record for module in model.modules() if (record := get(module)) is not None]
    holds = {hold.part for record in records for hold in record.holds}
    return holds | {part for record in records for slot in record.slots for part in slot.parts}


def _answered(model: nn.Module) -> set[str]:
    mine = {id(module) for module in model.modules()}
    return {
        part.id
        for part in live_parts.all_parts()
        if (root := part.root_or_none()) is not None
        and any(id(module) in mine for module in root.modules())
    }


def _terms(model: nn.Module, part: str) -> Terms:
    holds = {name: hold for name, module in named_modules(model) for hold in _holds(module, part)}
    tensors = named_tensors(model)
    frozen = [entry.name for entry in tensors if _is_slot(entry, part)]
    members = [e.name for e in tensors if e.name in set(frozen) or _is_member(e, part)]
    covered = set(members)
    return Terms(
        part=part,
        select="what was frozen when it left its model",
        exclude=None,
        params=bool(frozen),
        stats=next((hold.stats for hold in holds.values() if hold.stats is not None), "hold"),
        mode="eval" if any(h.eval and h.stats is None for h in holds.values()) else "follow",
        modules=list(holds),
        held=[name for name, hold in holds.items() if hold.eval],
        tensors=members,
        frozen=frozen,
        others=[entry.name for entry in tensors if entry.name not in covered],
    )


def _holds(module: nn.Module, part: str) -> Iterable[Hold]:
    record = get(module)
    return [] if record is None else [hold for hold in record.holds if hold.part == part]


def _is_slot(entry: NamedTensor, part: str) -> bool:
    return entry.kind == "parameter" and covers(entry.owner, entry.attribute, part)


def _is_member(entry: NamedTensor, part: str) -> bool:
    return entry.kind != "parameter" and keeps_buffers(entry.owner, part)
