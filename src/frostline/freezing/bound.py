"""The names of a part, bound to the objects of one model, so that a look costs microseconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from frostline._names import NamedTensor, Places, join
from frostline._results import Change
from frostline.errors import FrozenStateChanged
from frostline.freezing import record


@dataclass(eq=False, slots=True)
class _Place:
    """Where a frozen parameter hangs, which object that was, and its flag before."""

    name: str
    owner: ReferenceType[nn.Module]
    attribute: str
    tensor: Callable[[], Tensor | None]
    prior: bool


class Bound:
    """Weak references to the frozen parameters and the covered modules of one model."""

    def __init__(self, everything: Places, frozen: Sequence[str], modules: Sequence[str]) -> None:
        wanted, covered = set(frozen), set(modules)
        self._places = [
            _Place(
                e.name,
                ref(e.owner),
                e.attribute,
                _reference(e.owner, e.attribute, e.tensor),
                _prior(e),
            )
            for e in everything.tensors
            if e.kind == "parameter" and e.name in wanted
        ]
        self._children = [
            (full, ref(parent), key, ref(child))
            for name, parent in everything.modules
            for key, child in parent._modules.items()
            if child is not None and (full := join(name, key)) in covered
        ]
        held = (m for name, m in everything.modules if name in covered and record.is_held(m))
        sentinel = next(held, None)
        self._sentinel = ref(sentinel) if sentinel is not None else None

    @property
    def sentinel(self) -> nn.Module | None:
        """The first module that the part holds in eval mode."""
        return self._sentinel() if self._sentinel is not None else None

    def parameters(self) -> list[nn.Parameter]:
        """The frozen parameters that are alive."""
        return [parameter for parameter, _ in self.flags_before()]

    def flags_before(self) -> list[tuple[nn.Parameter, bool]]:
        """The same, each with its ``requires_grad`` before it was frozen."""
        found = ((place.tensor(), place.prior) for place in self._places)
        return [(p, prior) for p, prior in found if isinstance(p, nn.Parameter)]

    def modules(self) -> list[nn.Module]:
        """The covered modules below the root, and the owners of frozen parameters; those alive."""
        places = (*(child for *_, child in self._children), *(p.owner for p in self._places))
        return [module for place in places if (module := place()) is not None]

    def freeze_again(self) -> list[str]:
        """Freeze trainable parameters that stand where frozen ones stood; their names.

        The same object with its flag switched on is somebody's wish and stays as it is: it is
        named by ``changes()``.
        """
        again: list[str] = []
        for place in self._places:
            owner = place.owner()
            now = owner._parameters.get(place.attribute) if owner is not None else None
            if owner is None or now is None or now is place.tensor():
                continue
            place.tensor = _reference(owner, place.attribute, now)
            if now.requires_grad:
                now.requires_grad_(False)
                now.grad = None
                again.append(place.name)
        return again

    def refuse_replaced_modules(self, text: str) -> None:
        """Raise if another module stands where a covered one stood, unless it wraps that one.

        Raises:
            FrozenStateChanged: naming all of them.
        """
        replaced = [
            name
            for name, parent_ref, key, child_ref in self._children
            if _is_replaced(parent_ref(), key, child_ref())
        ]
        if replaced:
            more = f" and {len(replaced) - 1} more" if len(replaced) > 1 else ""
            raise FrozenStateChanged(
                f"{replaced[0]}{more} was replaced after freezing {text} and is not held. Freeze "
                f"what is there now: part.undo(), then fl.freeze(model, ...) again; or leave it "
                f"out: fl.unfreeze(model, {replaced[0]!r})",
                [Change(name, "replaced", "drift") for name in replaced],
            )


def is_swapped_by_torch(tensor: Tensor) -> bool:
    """Whether ``Module.to()`` gives the object new content by ``swap_tensors``.

    That is torch's way with wrapper subclasses (quantised weights, DTensor), with all tensors where
    the user asked for it, and it raises where anything refers weakly to them.
    """
    if type(tensor) is nn.Parameter or type(tensor) is Tensor:
        return torch.__future__.get_swap_module_params_on_conversion()
    return is_traceable_wrapper_subclass(tensor)


def _reference(owner: nn.Module, attribute: str, tensor: Tensor) -> Callable[[], Tensor | None]:
    """What gives ``tensor`` as long as it is alive, without keeping it so."""
    if not is_swapped_by_torch(tensor):
        return ref(tensor)
    place, identity = ref(owner), id(tensor)

    def look_up() -> Tensor | None:
        module = place()
        now = module._parameters.get(attribute) if module is not None else None
        return now if id(now) == identity else None

    return look_up


def _prior(entry: NamedTensor) -> bool:
    mine = record.get(entry.owner)
    slots = mine.slots if mine is not None else ()
    return any(slot.prior for slot in slots if slot.name == entry.attribute)


def _is_replaced(parent: nn.Module | None, key: str, child: nn.Module | None) -> bool:
    now = parent._modules.get(key) if parent is not None else None
    if now is None or now is child:
        return False
    return child is None or all(module is not child for module in now.modules())
