"""What a freeze would do to a model, decided before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from frostline._names import NamedTensor, Places, overlapping, partly_chosen
from frostline.errors import FreezeError, SelectionError
from frostline.freezing import held_class, holders, telling
from frostline.freezing.reads_training import class_reads, hooks_read
from frostline.freezing.record import Stats
from frostline.selection import Selection


@dataclass(eq=False, slots=True)
class PlannedHold:
    """How one module will be held.

    Attributes:
        eval: kept in eval mode.
        stats: the statistics switch, for normalisation layers.
        machinery: whether its class must be swapped.
        watch: whether its first forward is compared.
        mixed: whether only something trainable below it keeps it out of eval mode.
    """

    name: str
    module: nn.Module
    eval: bool
    stats: Stats | None
    machinery: bool
    watch: bool
    mixed: bool = False


@dataclass(eq=False)
class Plan:
    """All of it.

    Attributes:
        holds: one for every selected module.
        parameters: every place of every parameter that becomes frozen.
        tensors: every tensor that the part covers, parameters included.
        notes: what the user should know, shown by ``print(part)``.
        warnings: what the user should hear at once.
    """

    holds: list[PlannedHold]
    parameters: list[NamedTensor]
    tensors: list[NamedTensor]
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make_plan(
    model: nn.Module, selection: Selection, params: bool, stats: Stats, mode: str
) -> Plan:
    """Decide what happens to each selected module and tensor.

    Raises:
        FreezeError: if something selected can never be held.
        SelectionError: if the selection would freeze half of a tied or shared tensor.
    """
    selection = _with_owners_of_statistics(selection)
    _refuse_what_cannot_be_held(selection)
    parameters = [t for t in selection.tensors if t.kind == "parameter"] if params else []
    _refuse_half_of_a_tied_tensor(selection.everything.tensors, parameters)
    frozen = {id(entry.tensor) for entry in parameters}
    trainable = with_trainable_below(model, selection.everything, frozen)
    stateful = {id(e.owner) for e in selection.tensors if e.kind != "parameter"}
    kinds: dict[type, _Kind] = {}
    holds = [
        _plan_hold(name, module, _kind(module, kinds), id(module) in trainable, stats, mode)
        for name, module in selection.modules
    ]
    for hold in holds:
        hold.watch = hold.watch and id(hold.module) in stateful
        hold.machinery = hold.machinery or hold.watch
    plan = Plan(holds, parameters, _members(selection, holds, params, stats))
    telling.tell(plan)
    return plan


def _with_owners_of_statistics(selection: Selection) -> Selection:
    # Statistics that are named without their norm hold only if the norm stops writing them.
    selected = {(name, id(module)) for name, module in selection.modules}
    inside = {key for _, key in selected}
    buffers = [e for e in selection.tensors if e.kind != "parameter" and id(e.owner) not in inside]
    owners = {id(entry.owner) for entry in buffers if holders.tracks_statistics(entry.owner)}
    if not owners:
        return selection
    places = selection.everything.modules
    modules = [(n, m) for n, m in places if (n, id(m)) in selected or id(m) in owners]
    return replace(selection, modules=modules)


class _Kind(NamedTuple):
    """What is true of all modules of a class, found once a plan.

    Attributes:
        reads: its code looks at ``training``.
        known: it has machinery of its own.
        trusted: it is known to write to itself in no other way.
        keeps_its_class: its objects must not be swapped.
    """

    reads: bool
    known: bool
    trusted: bool
    keeps_its_class: bool


def _kind(module: nn.Module, kinds: dict[type, _Kind]) -> _Kind:
    cls = type(module)
    if cls not in kinds:
        known = holders.registered(cls) is not None
        trusted = known or cls.__module__.startswith("torch.nn.")
        keeps = held_class.keeps_its_class(module)
        kinds[cls] = _Kind(class_reads(cls), known, trusted, keeps)
    return kinds[cls]


def _plan_hold(
    name: str, module: nn.Module, kind: _Kind, trainable: bool, stats: Stats, mode: str
) -> PlannedHold:
    if holders.tracks_statistics(module):
        _refuse_batch_statistics(name, module, stats)
        swap = stats != "update" and not kind.keeps_its_class
        return PlannedHold(name, module, stats == "hold", stats, swap, False)
    may_hold = not (kind.keeps_its_class or trainable)
    reads = kind.reads or hooks_read(module)
    follows = mode == "follow" and not holders.writes_to_itself(module)
    eval_ = may_hold and not follows and (reads or (kind.known and holders.needs_machinery(module)))
    mixed = trainable and reads and not follows
    watch = may_hold and not kind.trusted
    return PlannedHold(name, module, eval_, None, eval_, watch, mixed)


def with_trainable_below(model: nn.Module, everything: Places, frozen: set[int]) -> set[int]:
    """Ids of the modules that keep something trainable at or below them.

    Args:
        model: the root.
        everything: all that hangs in it.
        frozen: ids of the parameters that count as frozen whatever their flag.
    """
    own = {
        id(entry.owner)
        for entry in everything.tensors
        if entry.kind == "parameter" and entry.tensor.requires_grad
        if id(entry.tensor) not in frozen
    }
    answers: dict[int, bool] = {}

    def visit(module: nn.Module) -> bool:
        if id(module) not in answers:
            below = [visit(child) for child in module._modules.values() if child is not None]
            answers[id(module)] = id(module) in own or True in below
        return answers[id(module)]

    if own:
        visit(model)
    return {key for key, answer in answers.items() if answer}


def _members(
    selection: Selection, holds: Iterable[PlannedHold], params: bool, stats: Stats
) -> list[NamedTensor]:
    # What goes on changing is no member: statistics under "update", parameters under params=False.
    free = {id(h.module) for h in holds if h.stats == "update"}
    return [
        entry
        for entry in selection.tensors
        if (params if entry.kind == "parameter" else id(entry.owner) not in free)
    ]


def _refuse_what_cannot_be_held(selection: Selection) -> None:
    rare = {cls for cls in {type(m) for _, m in selection.modules} if held_class.is_rare(cls)}
    for name, module in selection.modules if rare else ():
        why = held_class.cannot_be_held(module)
        if why is not None:
            raise FreezeError(
                f"{name or 'the model itself'} ({type(module).__name__}) cannot be frozen: {why}"
            )


def _refuse_half_of_a_tied_tensor(
    everything: list[NamedTensor], parameters: list[NamedTensor]
) -> None:
    everywhere = [entry for entry in everything if entry.kind == "parameter"]
    if len(everywhere) == len(parameters):
        return
    frozen = {id(entry.tensor) for entry in parameters}
    for inside, outside, _ in partly_chosen(everywhere, parameters):
        raise SelectionError(_tied(inside, outside))
    inside_table = {e.name: e.tensor for e in parameters}
    outside_table = {e.name: e.tensor for e in everywhere if id(e.tensor) not in frozen}
    for inside_name, outside_name in overlapping(inside_table, outside_table):
        raise SelectionError(
            f"{inside_name} and {outside_name} share bytes of memory, and only the first would be "
            "frozen. Freeze both, or neither."
        )


def _tied(inside: list[str], outside: list[str]) -> str:
    return (
        f"{' = '.join(inside + outside)} are one tied tensor, and the selection covers only "
        f"{', '.join(inside)}. Freeze all of its places: add {', '.join(map(repr, outside))} to "
        f"the selection; or none: exclude={inside if len(inside) > 1 else inside[0]!r}"
    )


def refuse_toggling_under_ddp(model: nn.Module, parameters: list[NamedTensor]) -> None:
    """Refuse to freeze what a DistributedDataParallel in ``model``, or around it, waits for.

    Raises:
        FreezeError: naming the first such parameter.
    """
    wrapped = isinstance(model, DistributedDataParallel) or any(
        isinstance(m, DistributedDataParallel) for m in model.modules()
    )
    toggled = [e.name for e in parameters if e.tensor.requires_grad]
    if wrapped and toggled:
        raise FreezeError(
            f"the model is wrapped in DistributedDataParallel already, which waits for gradients "
            f"of the parameters that required them when it was built; {toggled[0]} and "
            f"{len(toggled) - 1} more would stop. Freeze first, wrap after that: "
            "fl.freeze(model, ...); DistributedDataParallel(model)"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's model behind ``torch.compile``, DDP and DataParallel: the root of a part.

    A wrapper is often made for one call and dropped; the model in it lives on.
    """
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        else:
            return model


def _refuse_batch_statistics(name: str, module: nn.Module, stats: Stats) -> None:
    known = isinstance(module, nn.modules.batchnorm._NormBase)
    if stats == "batch" and not known and class_reads(type(module)):
        raise FreezeError(
            f'{name} ({type(module).__name__}) cannot be frozen with stats="batch": it is no torch '
            'norm, and how it computes batch statistics is not known. Use stats="hold" or "update"'
        )
