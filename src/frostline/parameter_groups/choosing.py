"""What ``groups=`` asks for: which parameters, with which options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from frostline._names import NamedTensor
from frostline.errors import SelectionError
from frostline.selection import Selector, describe, select


@dataclass(eq=False)
class Choice:
    """Parameters that share their options, as the user asks for it.

    Attributes:
        label: a readable name, empty where there is nothing to tell apart.
        options: what their groups hold, ``lr`` and ``weight_decay`` included.
        slots: the places of these parameters: id of the module, name of the attribute.
    """

    label: str
    options: dict[str, Any]
    slots: set[tuple[int, str]]

    def covers(self, entry: NamedTensor) -> bool:
        """Whether this place is among the selected ones."""
        return (id(entry.owner), entry.attribute) in self.slots

    def group(self, layer: int | None, scale: float, spared: bool) -> dict[str, Any]:
        """An empty parameter group of these options, at one layer, with or without decay."""
        told = (self.label, "" if layer is None else f"layer {layer}", "no decay" if spared else "")
        group = {"params": [], "name": ", ".join(filter(None, told)), **self.options}
        group["lr"] *= scale
        if spared:
            group["weight_decay"] = 0.0
        return group


def choose(
    model: nn.Module,
    entries: Iterable[NamedTensor],
    groups: Mapping[Selector, float | Mapping[str, Any]],
    rest: Choice,
) -> list[tuple[Tensor, Choice]]:
    """Each parameter among ``entries`` once, in their order, with the first choice that covers it.

    Raises:
        SelectionError: if there are none, a selector matches none or only those of earlier ones, or
            the places of a tied tensor fall into choices that differ.
    """
    places: dict[int, list[NamedTensor]] = {}
    for entry in entries:
        places.setdefault(id(entry.tensor), []).append(entry)
    if not places:
        raise SelectionError(
            f"{type(model).__name__} has no parameters that an optimizer could train"
        )
    named = [_choice(model, *item, rest.options) for item in groups.items()]
    chosen = {key: _choice_of(held, [*named, rest]) for key, held in places.items()}
    for choice in named:
        if choice not in chosen.values():
            takers = [chosen[key] for key, held in places.items() if any(map(choice.covers, held))]
            raise SelectionError(
                f'groups: every parameter of "{choice.label}" stands in an earlier group '
                f"({', '.join(dict.fromkeys(taker.label for taker in takers))}), since the first "
                "that matches wins. Write the narrower selector first, or leave it out"
            )
    return [(held[0].tensor, chosen[key]) for key, held in places.items()]


def parameters_of(model: nn.Module, selector: Selector) -> list[NamedTensor]:
    """The parameters that ``selector`` matches and an optimizer could train.

    Raises:
        SelectionError: if there are none.
    """
    found = [entry for entry in select(model, selector).tensors if is_for_optimizers(entry)]
    if not found:
        raise SelectionError(
            f"{describe(selector)} selects no parameter of this {type(model).__name__} that an "
            "optimizer could train. Select a module with floating point parameters at or below it"
        )
    return found


def is_for_optimizers(entry: NamedTensor) -> bool:
    """Whether this is a parameter that can require gradients, which integers cannot."""
    tensor = entry.tensor
    return entry.kind == "parameter" and (tensor.is_floating_point() or tensor.is_complex())


def slots_of(entries: Iterable[NamedTensor]) -> set[tuple[int, str]]:
    """The places of these tensors, each by its module and attribute."""
    return {(id(entry.owner), entry.attribute) for entry in entries}


def _choice(
    model: nn.Module, selector: Selector, asked: float | Mapping[str, Any], defaults: dict[str, Any]
) -> Choice:
    options = {**defaults, **(asked if isinstance(asked, Mapping) else {"lr": asked})}
    for option in ("lr", "weight_decay"):
        # numpy's numbers would not load with weights_only.
        options[option] = float(options[option])
    label = str(options.pop("name", selector if isinstance(selector, str) else describe(selector)))
    return Choice(label, options, slots_of(parameters_of(model, selector)))


def _choice_of(places: Sequence[NamedTensor], choices: Sequence[Choice]) -> Choice:
    by_place = [next(choice for choice in choices if choice.covers(entry)) for entry in places]
    first = min(by_place, key=choices.index)
    if any(choice.options != first.options for choice in by_place):
        names = tuple(entry.name for entry in places)
        told = [f"{name} ({c.label})" for name, c in zip(names, by_place, strict=True)]
        raise SelectionError(
            f"groups: {' = '.join(told)} are one tied tensor, and it has one learning rate. Name "
            f"all of its places in one group, before the others: groups={{{names}: "
            f"{first.options['lr']}, ...}}"
        )
    return first
