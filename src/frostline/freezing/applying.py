"""``freeze``: hold a part of a model."""

from __future__ import annotations

import os
import warnings
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from frostline._names import Places
from frostline._state import collector_paused
from frostline.errors import FreezeError, FrostlineWarning, FrozenStateChanged
from frostline.freezing import arguments, held_class, optimizers
from frostline.freezing.machinery import Held
from frostline.freezing.part import FrozenPart, Terms
from frostline.freezing.planning import Plan, make_plan, refuse_toggling_under_ddp, unwrapped
from frostline.freezing.record import PARTS, WATCH, Hold, Record, Slot, Stats, get, put
from frostline.manifests import Manifest
from frostline.manifests import manifest as digest_now
from frostline.selection import Selection, Selector, describe
from frostline.selection import select as choose


def freeze(
    model: nn.Module,
    select: Selector = None,
    *,
    exclude: Selector = None,
    params: bool = True,
    stats: Stats = "hold",
    mode: Literal["eval", "follow"] = "eval",
    seal: bool = True,
    optimizer: Optimizer | None = None,
) -> FrozenPart:
    """Freeze a part of a model, in place, so that it holds; the result is a handle, not the model.

    After this no forward, mode change, optimizer step, statistics reset, copy, wrapper or compiler
    changes a byte of the part. Nothing is written to a tensor. What else can write (``.data``,
    numpy, a load) is named by ``part.changes()``.

    Args:
        model: the model; wrapped by ``torch.compile`` or ``DataParallel``, the model inside it.
        select: the part: a name or pattern (``"backbone"``, ``"backbone.layer[1-3]"``,
            ``"**.norm*"``), a compiled regular expression, a module, a module type, a function
            ``(name, module) -> bool``, ``fl.FLAGGED`` (what has ``requires_grad=False`` already), a
            manifest (frozen as it says, and verified), a list of these; None is the whole model.
        exclude: what to leave out of it, in the same language.
        params: freeze parameters: no gradients, and optimizers leave them alone.
        stats: what normalisation layers do in training mode: ``"hold"`` normalises with the running
            statistics and never updates them; ``"batch"`` normalises with the batch and leaves them
            alone; ``"update"`` is plain torch, and the statistics are then no members of the part.
        mode: ``"eval"`` also switches off dropout and the like; ``"follow"`` holds only what would
            write to itself (for adapters and GANs).
        seal: take the content at once as what the part is compared with; tensors on the meta
            device leave the part unsealed.
        optimizer: also sets aside what it keeps for these parameters. Its groups stay as they are.

    Returns:
        The part. ``part.undo()``, or the end of a ``with`` block, puts everything back.

    Raises:
        SelectionError: if a selector matches nothing, or half of a tied tensor.
        FreezeError: if something selected cannot be held (ScriptModule, lazy module), the model
            sits in DDP already, or ``optimizer`` would be left with nothing or is an LBFGS.
        UnsupportedTensor: if a tensor cannot be sealed; ``seal=False`` freezes it all the same.
        FrozenStateChanged: if a manifest is given and the content differs from it.

    Example:
        >>> import torch, frostline as fl
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
        >>> net[1].running_mean.fill_(0.5); net[1].num_batches_tracked.fill_(10)
        tensor([0.5000, 0.5000])
        tensor(10)
        >>> part = fl.freeze(net)
        >>> _ = net.train()(torch.randn(4, 1, 8, 8))
        >>> net[1].running_mean
        tensor([0.5000, 0.5000])
        >>> part.ok
        True
    """
    arguments.check(model, select, {"params": params, "seal": seal}, stats, mode, optimizer)
    given, model = model, unwrapped(model)
    if isinstance(select, Manifest) and select.switches is not None:
        params, stats, mode = arguments.switches_of(select, params, stats, mode)
    with collector_paused():
        selection = choose(model, select, exclude)
        plan = make_plan(model, selection, params, stats, mode)
        refuse_toggling_under_ddp(given, plan.parameters)
        _refuse_an_empty_optimizer(plan, optimizer)
        terms = _terms(selection, plan, _texts(select, exclude), params, stats, mode)
        part = FrozenPart(model, terms)
        try:
            _apply(model, plan, part, selection.everything, optimizer)
            if seal and not any(entry.tensor.is_meta for entry in plan.tensors):
                part.seal()
            if isinstance(select, Manifest):
                _verify(part, select)
        except BaseException:
            part.undo()
            raise
    for warning in plan.warnings:
        warnings.warn(warning, FrostlineWarning, stacklevel=2)
    return part


def _terms(
    selection: Selection,
    plan: Plan,
    selectors: tuple[str, str | None],
    params: bool,
    stats: Stats,
    mode: str,
) -> Terms:
    members = [entry.name for entry in plan.tensors]
    covered = set(members)
    return Terms(
        part=os.urandom(8).hex(),
        select=selectors[0],
        exclude=selectors[1],
        params=params,
        stats=stats,
        mode=mode,
        modules=list(dict.fromkeys(hold.name for hold in plan.holds)),
        held=[hold.name for hold in plan.holds if hold.eval],
        tensors=members,
        frozen=[entry.name for entry in plan.parameters],
        others=[e.name for e in selection.everything.tensors if e.name not in covered],
        notes=list(plan.notes),
    )


def _texts(select: Selector, exclude: Selector) -> tuple[str, str | None]:
    """Both selectors as the user wrote them, at the first freeze where a manifest carries that."""
    if isinstance(select, Manifest) and select.switches is not None and exclude is None:
        return str(select.switches["select"]), select.switches["exclude"]
    return describe(select), describe(exclude) if exclude is not None else None


def _apply(
    model: nn.Module, plan: Plan, part: FrozenPart, everything: Places, optimizer: Optimizer | None
) -> None:
    vars(model)[PARTS] = (*vars(model).get(PARTS, ()), part)
    _hold(plan, part.id, _slots(everything, plan, part.id))
    # The records are complete, so that an undo finds every flag, whatever happens from here on.
    frozen = [parameter for parameter, _ in part.bind(everything).flags_before()]
    optimizers.set_aside(model, frozen, optimizer)
    for parameter in frozen:
        parameter.requires_grad_(False)
    optimizers.watch_steps()


def _hold(plan: Plan, part: str, slots: dict[int, tuple[nn.Module, tuple[Slot, ...]]]) -> None:
    """Swap the classes that the plan names, and give every module its record."""
    classes: dict[tuple[type, bool], type[nn.Module]] = {}
    # Records are equal for most modules, and nobody writes to one: a few objects serve thousands.
    shared: dict[tuple[Hold, tuple[Slot, ...]], Record] = {}
    for planned in plan.holds:
        module = planned.module
        watched = planned.watch and not isinstance(module, Held)
        if planned.machinery:
            held_class.swap_in(planned.name, module, watched, classes)
        if watched:
            vars(module)[WATCH] = planned.name
        new = Hold(part, planned.eval, planned.stats), slots.pop(id(module), (module, ()))[1]
        old = get(module)
        if old is not None:
            put(module, _joined(old, (new[0],), new[1]))
            continue
        if new not in shared:
            shared[new] = Record((new[0],), new[1])
        put(module, shared[new])
    # What is left are parameters that were selected without their module.
    for owner, its_slots in slots.values():
        put(owner, _joined(get(owner) or Record(), (), its_slots))


def _joined(record: Record, holds: tuple[Hold, ...], slots: tuple[Slot, ...]) -> Record:
    fresh = {slot.name for slot in slots}
    kept = [slot for slot in record.slots if slot.name not in fresh]
    return Record((*record.holds, *holds), (*kept, *slots), record.was_training)


def _slots(
    everything: Places, plan: Plan, part: str
) -> dict[int, tuple[nn.Module, tuple[Slot, ...]]]:
    """For each owner (by id) the slots of its frozen parameters, with what their flags were."""
    old = {
        (id(module), slot.name): slot
        for _, module in everything.modules
        if (record := get(module)) is not None
        for slot in record.slots
    }
    # A tied tensor may be frozen already at another place: then its flag today is not its own.
    priors = {
        id(entry.tensor): old[id(entry.owner), entry.attribute].prior
        for entry in (everything.tensors if old else ())
        if (id(entry.owner), entry.attribute) in old
    }
    found: dict[int, tuple[nn.Module, dict[str, Slot]]] = {}
    for entry in plan.parameters:
        prior = priors.get(id(entry.tensor), entry.tensor.requires_grad)
        before = old.get((id(entry.owner), entry.attribute))
        parts = (part,) if before is None else (*before.parts, part)
        mine = found.setdefault(id(entry.owner), (entry.owner, {}))[1]
        mine[entry.attribute] = Slot(entry.attribute, prior, parts)
    return {key: (owner, tuple(slots.values())) for key, (owner, slots) in found.items()}


def _refuse_an_empty_optimizer(plan: Plan, optimizer: Optimizer | None) -> None:
    if optimizer is None:
        return
    frozen = {id(entry.tensor) for entry in plan.parameters}
    optimizers.refuse_lbfgs(optimizer, frozen)
    given = [p for group in optimizer.param_groups for p in group["params"]]
    if given and not any(p.requires_grad and id(p) not in frozen for p in given):
        raise FreezeError(
            f"all {len(given)} parameters of this {type(optimizer).__name__} would be frozen, so "
            "it would have nothing to train. Leave the head out: fl.freeze(model, ..., "
            "exclude='head'), or give the optimizer the trainable parameters"
        )


def _verify(part: FrozenPart, manifest: Manifest) -> None:
    differences = manifest.compare(digest_now(part))
    if differences:
        shown = "\n".join(f"  {difference}" for difference in differences[:10])
        raise FrozenStateChanged(
            f"the content differs from the manifest in {len(differences)} places; nothing was "
            f"frozen.\n{shown}\nLoad the weights first that the manifest was made of"
        )
