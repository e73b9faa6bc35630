"""``unfreeze`` and the undo of a part: letting go, exactly."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterable

import torch
from torch import nn

from frostline._names import NamedTensor, named_modules, named_tensors, partly_chosen
from frostline.errors import FrostlineWarning, SelectionError
from frostline.freezing import arguments, held_class, live_parts, optimizers
from frostline.freezing.planning import unwrapped
from frostline.freezing.record import PARTS, Record, Slot, get, put, without_part
from frostline.selection import Selection, Selector, describe
from frostline.selection import select as choose


def undo(part: live_parts.LivePart) -> None:
    """Take everything back that ``part`` asked for; what another part covers stays frozen."""
    live_parts.about_to_shrink([part])
    live_parts.discard(part)
    root, id_, frozen = part.root_or_none(), part.id, part.flags_before()
    modules = _modules(root, part)
    if root is not None:
        _leave(root, part)
    released = _drop(modules, lambda record: without_part(record, id_))
    # A piece that was adopted elsewhere has a second handle of the same id: it is let go as well.
    others = [other for other in live_parts.all_parts() if other.id != id_]
    # A parametrisation added or removed meanwhile has hung the same parameter somewhere else.
    standing = [(m._parameters.get(slot.name), slot.prior) for m, slot in released]
    _give_flags_back([*standing, *frozen], _still_frozen(modules, others))
    optimizers.unwatch_steps_if_idle()


def _modules(root: nn.Module | None, part: live_parts.LivePart) -> list[nn.Module]:
    """The modules of the model, and those of the part that have left it since."""
    here = root.modules() if root is not None else ()
    return list({id(module): module for module in (*here, *part.modules_then())}.values())


def _leave(root: nn.Module, part: live_parts.LivePart) -> None:
    own = vars(root)
    own[PARTS] = tuple(other for other in own.get(PARTS, ()) if other is not part)
    if not own[PARTS]:
        del own[PARTS]


def _drop(
    modules: Iterable[nn.Module], change: Callable[[Record], Record]
) -> list[tuple[nn.Module, Slot]]:
    """Apply ``change`` to the record of each module; the slots that nobody covers any more."""
    gone: list[tuple[nn.Module, Slot]] = []
    for module in modules:
        before = get(module)
        if before is None:
            # A freeze may have been interrupted between the class and the record.
            held_class.swap_out(module)
            continue
        after = change(before)
        if after == before:
            continue
        put(module, after)
        if get(module) is None:
            held_class.swap_out(module)
        kept = {slot.name for slot in after.slots}
        gone += [(module, slot) for slot in before.slots if slot.name not in kept]
    return gone


def _still_frozen(modules: Iterable[nn.Module], parts: Iterable[live_parts.LivePart]) -> set[int]:
    """Ids of the parameters that a record of these modules, or one of these parts, still covers."""
    return {
        id(module._parameters.get(slot.name))
        for module in modules
        if (record := get(module)) is not None
        for slot in record.slots
    } | {id(parameter) for part in parts for parameter in part.frozen_parameters()}


def _give_flags_back(
    flags: Iterable[tuple[nn.Parameter | None, bool]], still: Container[int]
) -> None:
    for parameter, prior in flags:
        if parameter is None or id(parameter) in still:
            continue
        if prior:
            # torch lets nobody set the flag of an inference tensor outside of its mode.
            with torch.inference_mode(parameter.is_inference()):
                parameter.requires_grad_(True)
        optimizers.bring_back(parameter)


def unfreeze(model: nn.Module, select: Selector = None) -> list[nn.Parameter]:
    """Make a part trainable, whoever froze it, and return the parameters that became so.

    The modules follow ``train()`` and ``eval()`` again, in the mode that was last asked for. Parts
    shrink: ``part.undo()`` still puts back what is left of them.

    Args:
        model: the model.
        select: the part, in the language of :func:`frostline.freeze`; None is the whole model.

    Returns:
        The parameters that became trainable, each once, in the order of the model: for
        ``optimizer.add_param_group({"params": fl.unfreeze(model, "backbone.layer4")})``. Nothing
        frozen in it gives an empty list and a warning.

    Raises:
        SelectionError: if ``select`` matches nothing, or half of a tied tensor.

    Example:
        >>> import torch, frostline as fl
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> part = fl.freeze(net)
        >>> len(fl.unfreeze(net, "1")), net[1].weight.requires_grad, net[0].weight.requires_grad
        (2, True, False)
    """
    arguments.check_model(model, "unfreeze", select)
    root = unwrapped(model)
    chosen = choose(root, select)
    places = [entry for entry in chosen.tensors if entry.kind == "parameter"]
    _refuse_half_of_a_tied_tensor(root, places)
    thawed = [p for p in _unique(places) if not p.requires_grad and _can_require_grad(p)]
    live_parts.about_to_shrink(live_parts.all_parts())
    was_held = _release(chosen, places)
    for parameter in thawed:
        parameter.requires_grad_(True)
    optimizers.forget(thawed)
    _free_parents(root)
    shrunk = _shrink_parts(chosen, places)
    optimizers.unwatch_steps_if_idle()
    if not (thawed or was_held or shrunk):
        warnings.warn(
            f"nothing in {describe(select)} of {type(root).__name__} was frozen, so nothing "
            "changed",
            FrostlineWarning,
            stacklevel=2,
        )
    return thawed


def _unique(places: Iterable[NamedTensor]) -> list[nn.Parameter]:
    return list({id(e.tensor): e.tensor for e in places}.values())  # type: ignore[arg-type]


def _can_require_grad(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _refuse_half_of_a_tied_tensor(root: nn.Module, places: list[NamedTensor]) -> None:
    everywhere = [entry for entry in named_tensors(root) if entry.kind == "parameter"]
    for inside, outside, tensor in partly_chosen(everywhere, places):
        if not tensor.requires_grad:
            raise SelectionError(
                f"{' = '.join(inside + outside)} are one tied tensor: unfreezing "
                f"{', '.join(inside)} alone would train all of them. Name all of its places: "
                f"fl.unfreeze(model, {inside + outside})"
            )


def _release(chosen: Selection, places: list[NamedTensor]) -> bool:
    """Drop every hold on the chosen modules and every slot of the chosen parameters."""
    modules = {id(m) for _, m in chosen.modules}
    wanted: dict[int, set[str]] = {}
    owners = {id(m): m for _, m in chosen.modules}
    for entry in places:
        wanted.setdefault(id(entry.owner), set()).add(entry.attribute)
        owners[id(entry.owner)] = entry.owner
    was_held = False
    for key, module in owners.items():
        record = get(module)
        if record is None:
            continue
        slots = tuple(s for s in record.slots if s.name not in wanted.get(key, set()))
        holds = () if key in modules else record.holds
        was_held = was_held or holds != record.holds
        put(module, Record(holds, slots, record.was_training))
        if get(module) is None:
            held_class.swap_out(module)
    return was_held


def _free_parents(root: nn.Module) -> None:
    """A module with anything trainable below it is never held in eval, its norms apart."""
    tops = {id(root): root}
    for part in live_parts.all_parts():
        top = part.root_or_none()
        if top is not None:
            tops[id(top)] = top
    for top in tops.values():
        for module in top.modules():
            record = get(module)
            if record is None or not record.eval or any(h.stats for h in record.holds):
                continue
            if any(p.requires_grad for p in module.parameters()):
                holds = tuple(hold._replace(eval=False) for hold in record.holds)
                put(module, Record(holds, record.slots, record.was_training))


def _shrink_parts(chosen: Selection, places: list[NamedTensor]) -> bool:
    """Leave out of every part what was let go; whether any part covered some of it."""
    shrunk = False
    modules = {id(m) for _, m in chosen.modules}
    tensors = {id(e.tensor) for e in places} | {
        id(e.tensor) for e in chosen.tensors if id(e.owner) in modules
    }
    for part in live_parts.all_parts():
        top = part.root_or_none()
        if top is None:
            continue
        names = {e.name for e in named_tensors(top) if id(e.tensor) in tensors}
        paths = {name for name, module in named_modules(top) if id(module) in modules}
        free = {n for n, m in named_modules(top) if (r := get(m)) is not None and not r.eval}
        shrunk = part.forget(names, paths, free) or shrunk
        if part.is_empty:
            undo(part)
    return shrunk
