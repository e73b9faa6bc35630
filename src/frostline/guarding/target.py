"""What a guard watches: every frozen tensor once, with all of its names and places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from frostline._names import NamedTensor, named_tensors
from frostline.errors import FreezeError, SelectionError
from frostline.freezing import parts as parts_of
from frostline.freezing import record
from frostline.freezing.part import FrozenPart
from frostline.selection import FLAGGED, Selector, describe, select

Guardable: TypeAlias = "FrozenPart | nn.Module | Sequence[FrozenPart | nn.Module]"


@dataclass(eq=False)
class Watched:
    """One tensor object that must not change.

    Attributes:
        name: its first full name.
        places: everywhere it hangs; a tied tensor hangs at several places.
        tensor: the object. Held strongly: torch swaps no tensor that is referred to weakly.
        by_flag: whether nothing but ``requires_grad=False`` says that it is frozen.
        part: the part that covers it, if one does.
    """

    name: str
    places: list[NamedTensor]
    tensor: Tensor
    by_flag: bool = False
    part: FrozenPart | None = None

    @property
    def names(self) -> list[str]:
        """All of its full names."""
        return [place.name for place in self.places]

    @property
    def owner(self) -> nn.Module:
        """The module that holds it at its first place."""
        return self.places[0].owner


@dataclass(eq=False)
class Target:
    """What is guarded.

    Attributes:
        text: the target in words.
        models: the models that it belongs to.
        tensors: every frozen tensor once.
        parts: the parts among it.
        by_flag: whether membership follows the flags of the model.
    """

    text: str
    models: list[nn.Module]
    tensors: list[Watched] = field(default_factory=list)
    parts: list[FrozenPart] = field(default_factory=list)
    by_flag: bool = False

    @property
    def names(self) -> list[str]:
        """Every name of every tensor."""
        return [name for watched in self.tensors for name in watched.names]


def resolve(target: Any, selector: Selector = None) -> Target:
    """Find the tensors that ``target`` and ``selector`` name.

    Raises:
        SelectionError: nothing is frozen, or the selector matches nothing.
        FreezeError: a part that was undone.
        TypeError: no part and no model.
    """
    found = _of_one(target, selector) if not _is_several(target) else _of_several(target, selector)
    if not found.tensors:
        raise SelectionError(
            f"{found.text} has no tensors, so there is nothing to watch. Guard the whole model: "
            "fl.guard(model)"
        )
    return found


def by_flags(model: nn.Module, selector: Selector = None) -> Target:
    """What flags, parts and ``selector`` say is frozen now, which may be nothing at all."""
    found = Target(type(model).__name__, [model], by_flag=True)
    _add(found, _frozen_places(model), "")
    named = select(model, selector).tensors if selector is not None else []
    _add(found, named, "")
    found.parts = parts_of(model)
    _mark(found)
    chosen = {id(entry.tensor) for entry in named}
    for watched in found.tensors:
        # What was chosen by name stays watched, whatever its flag says.
        watched.by_flag = watched.by_flag and id(watched.tensor) not in chosen
    return found


def frozen_now(models: Iterable[nn.Module]) -> set[int]:
    """Ids of the tensors that parts and flags freeze at this moment."""
    return {id(entry.tensor) for model in models for entry in _frozen_places(model)}


def name_in(target: Target, model: nn.Module, name: str) -> str:
    """``name`` of ``model``; with its class and number in front where there are several models."""
    if len(target.models) == 1:
        return name
    number = next(i for i, other in enumerate(target.models) if other is model)
    return f"{type(model).__name__}[{number}].{name}"


def places_by_name(target: Target) -> dict[str, list[NamedTensor]]:
    """What hangs at each name; wrappers left out, two tensors can have the same one."""
    found: dict[str, list[NamedTensor]] = {}
    for model in target.models:
        for entry in named_tensors(model):
            found.setdefault(name_in(target, model, entry.name), []).append(entry)
    return found


def standing_at(live: dict[str, list[NamedTensor]], place: NamedTensor) -> NamedTensor | None:
    """What hangs at the name of ``place`` now; where there are two, the one at its module."""
    entries = live.get(place.name, [])
    own = (e for e in entries if e.owner is place.owner and e.attribute == place.attribute)
    return next(own, entries[0] if entries else None)


def _is_several(target: Any) -> bool:
    return isinstance(target, list | tuple | set | frozenset)


def _of_several(targets: Iterable[Any], selector: Selector) -> Target:
    singles = [_of_one(target, selector) for target in targets]
    if not singles:
        raise SelectionError("the list of parts is empty, so there is nothing to watch")
    models = list({id(m): m for single in singles for m in single.models}.values())
    joined = Target(", ".join(dict.fromkeys(s.text for s in singles)), models)
    for single in singles:
        prefix = name_in(joined, single.models[0], "")
        _add(joined, [place for w in single.tensors for place in w.places], prefix)
        joined.parts += [part for part in single.parts if part not in joined.parts]
    _mark(joined)
    flagged = {id(w.tensor) for single in singles for w in single.tensors if w.by_flag}
    for watched in joined.tensors:
        watched.by_flag = watched.part is None and id(watched.tensor) in flagged
    return joined


def _of_one(target: Any, selector: Selector) -> Target:
    if isinstance(target, FrozenPart):
        return _of_part(target, selector)
    if isinstance(target, nn.Module):
        return _of_model(target, selector)
    raise TypeError(_wrong_target(target, selector))


def _of_part(part: FrozenPart, selector: Selector) -> Target:
    if part.undone:
        raise FreezeError(
            f"{part!r} holds nothing any more. Guard before it is undone, or guard the model: "
            "fl.guard(model, select)"
        )
    model, covered = part.model, part.tensors
    places = [entry for entry in named_tensors(model) if entry.name in covered]
    if selector is not None:
        places = _both(places, select(model, selector).tensors, part, selector)
    found = Target(f"{part.switches['select']} of {type(model).__name__}", [model])
    _add(found, places, "")
    found.parts = [part]
    _mark(found)
    return found


def _both(
    places: list[NamedTensor], chosen: list[NamedTensor], part: FrozenPart, selector: Selector
) -> list[NamedTensor]:
    wanted = {(id(entry.owner), entry.attribute) for entry in chosen}
    both = [entry for entry in places if (id(entry.owner), entry.attribute) in wanted]
    if not both:
        raise SelectionError(
            f"{describe(selector)} selects nothing that {part!r} covers. Guard the model instead: "
            f"fl.guard(model, {describe(selector)})"
        )
    return both


def _of_model(model: nn.Module, selector: Selector) -> Target:
    name = type(model).__name__
    if selector is not None:
        found = Target(f"{describe(selector)} of {name}", [model])
        _add(found, select(model, selector).tensors, "")
        found.parts = [p for p in parts_of(model) if _covers_some(p, found)]
    else:
        found = Target(f"what is frozen of {name}", [model], by_flag=True)
        _add(found, _frozen_places(model), "")
        if not found.tensors:
            raise SelectionError(
                f"nothing in {name} is frozen, so there is nothing to watch. Freeze first, or say "
                "which part must not change: fl.guard(model, 'backbone')"
            )
        found.parts = _parts_below(model)
    _mark(found)
    return found


def _frozen_places(model: nn.Module) -> list[NamedTensor]:
    """What parts cover, and what flags mean to freeze."""
    covered = {
        (id(entry.owner), entry.attribute)
        for part in _parts_below(model)
        for entry in named_tensors(part.model)
        if entry.name in part.tensors
    }
    try:
        flagged = select(model, FLAGGED).tensors
    except SelectionError:
        flagged = []
    covered |= {(id(e.owner), e.attribute) for e in flagged if not _is_let_run(e)}
    return [e for e in named_tensors(model) if (id(e.owner), e.attribute) in covered]


def _is_let_run(entry: NamedTensor) -> bool:
    """Whether a part was asked, with ``stats="update"``, to leave this buffer alone."""
    known = record.get(entry.owner) if entry.kind == "buffer" else None
    return known is not None and any(hold.stats == "update" for hold in known.holds)


def _parts_below(model: nn.Module) -> list[FrozenPart]:
    """Parts of the model and of its submodules, which people freeze on their own."""
    found = [part for module in model.modules() for part in _own_parts(module)]
    return list({id(part): part for part in (*parts_of(model), *found)}.values())


def _own_parts(module: nn.Module) -> list[FrozenPart]:
    return [part for part in vars(module).get(record.PARTS, ()) if part.is_of(module)]


def _covers_some(part: FrozenPart, found: Target) -> bool:
    tensors = {id(watched.tensor) for watched in found.tensors}
    return any(id(tensor) in tensors for tensor in part.tensors.values())


def _add(found: Target, places: Iterable[NamedTensor], prefix: str) -> None:
    known = {id(watched.tensor): watched for watched in found.tensors}
    # A module that hangs at two places has two names, and both have to stay.
    seen = {_key(place) for watched in found.tensors for place in watched.places}
    taken = set(found.names)
    for place in places:
        named = replace(place, name=prefix + place.name)
        if _key(named) in seen:
            continue
        seen.add(_key(named))
        if id(place.tensor) in known:
            known[id(place.tensor)].places.append(named)
            continue
        # Wrappers left out, two tensors can have one name.
        name = named.name if named.name not in taken else f"{named.name} (inner)"
        taken.add(name)
        watched = Watched(name, [named], place.tensor)
        known[id(place.tensor)] = watched
        found.tensors.append(watched)


def _key(place: NamedTensor) -> tuple[str, int, str]:
    return place.name, id(place.owner), place.attribute


def _mark(found: Target) -> None:
    """Say of each tensor whether a part covers it or only its flag."""
    for part in found.parts:
        covered = {id(tensor) for tensor in part.tensors.values()}
        for watched in found.tensors:
            if id(watched.tensor) in covered:
                watched.part = part
    for watched in found.tensors:
        watched.by_flag = found.by_flag and watched.part is None


def _wrong_target(target: Any, selector: Any) -> str:
    if isinstance(selector, nn.Module | FrozenPart):
        return f"the arguments of guard are swapped: write fl.guard(model, {target!r})"
    if isinstance(target, dict):
        hint = "a state dict has no steps; compare it with fl.manifest, or guard the live model"
    elif isinstance(target, Tensor):
        hint = "name it within its model: fl.guard(model, 'backbone.conv1.weight')"
    elif hasattr(target, "param_groups"):
        hint = "optimizers introduce themselves at their first step; hand in the model"
    elif hasattr(target, "parameters") or hasattr(target, "__next__"):
        hint = "write fl.guard(model, 'backbone'): buffers are watched too"
    else:
        hint = "expected fl.guard(part), fl.guard([part, part]) or fl.guard(model, select)"
    return f"guard got a {type(target).__name__}, no FrozenPart and no model: {hint}"
