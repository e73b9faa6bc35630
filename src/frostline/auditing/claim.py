"""What is claimed to be frozen: by a selector, or by flags and parts."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from frostline._names import NamedTensor
from frostline.behaviours.leaking import follows_on_purpose
from frostline.errors import SelectionError
from frostline.freezing import parts
from frostline.selection import FLAGGED, Selection, Selector, describe, select


@dataclass(eq=False, repr=False)
class Claim:
    """What must not change.

    Attributes:
        text: where the claim comes from, in words.
        modules: ids of the modules that are frozen as a whole.
        flagged: ids of those of them that flags alone claim.
        tensors: the frozen tensors, by id, each at the first of its places.
        selected: the places of the tensors that a selector of the user's named; empty without one.
    """

    text: str
    modules: set[int] = field(default_factory=set)
    flagged: set[int] = field(default_factory=set)
    tensors: dict[int, NamedTensor] = field(default_factory=dict)
    selected: list[NamedTensor] = field(default_factory=list)

    def _add(self, found: Selection) -> None:
        self.modules |= {id(module) for _, module in found.modules}
        for entry in found.tensors:
            self.tensors.setdefault(id(entry.tensor), entry)


def claim(model: nn.Module, frozen: Selector) -> Claim:
    """The claim about ``model``: what ``frozen`` selects, or what flags and parts say.

    Statistics that a part leaves free on purpose (``stats="update"``) are left out.

    Raises:
        SelectionError: ``frozen`` selects nothing.
    """
    if frozen is not None:
        found = select(model, frozen)
        made = Claim(f"frozen={describe(frozen)}", selected=found.tensors)
        made._add(found)
    else:
        made = _by_flags_and_parts(model)
    _leave_out_what_follows(model, made)
    return made


def _by_flags_and_parts(model: nn.Module) -> Claim:
    made = Claim("requires_grad=False")
    try:
        made._add(select(model, FLAGGED))
        made.flagged = set(made.modules)
    except SelectionError:
        made.text = "nothing: no flag is off, and no part is frozen"
    held = parts(model)
    everything = select(model).tensors if held else []
    for part in held:
        made.modules |= {id(module) for module in part.modules.values()}
        covered = part.tensors
        for entry in everything:
            if entry.name in covered:
                made.tensors.setdefault(id(entry.tensor), entry)
    if held:
        by_flag = "requires_grad=False, and " if made.text.startswith("requires") else ""
        made.text = f"{by_flag}fl.freeze"
    return made


def _leave_out_what_follows(model: nn.Module, made: Claim) -> None:
    for module in model.modules():
        if id(module) in made.modules and follows_on_purpose(module):
            for buffer in module._buffers.values():
                made.tensors.pop(id(buffer), None)
