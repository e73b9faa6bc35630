"""What is claimed to be frozen: by a selector, or by flags and parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from frostline._names import NamedTensor, Places, places
from frostline.behaviours.leaking import follows_on_purpose
from frostline.errors import SelectionError
from frostline.freezing.record import covers, get, keeps_buffers
from frostline.selection import FLAGGED, Selector, describe, select


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

    def _add(
        self, modules: Iterable[tuple[str, nn.Module]], tensors: Iterable[NamedTensor]
    ) -> None:
        self.modules |= {id(module) for _, module in modules}
        for entry in tensors:
            self.tensors.setdefault(id(entry.tensor), entry)


def claim(model: nn.Module, frozen: Selector, everything: Places | None = None) -> Claim:
    """The claim about ``model``: what ``frozen`` selects, or what flags and parts say.

    Statistics that a part leaves free on purpose (``stats="update"``) are left out.

    Args:
        model: the root.
        frozen: a selector, or None.
        everything: all that hangs in ``model``, where somebody walked it already.

    Raises:
        SelectionError: ``frozen`` selects nothing.
    """
    walked = places(model) if everything is None else everything
    if frozen is not None:
        found = select(model, frozen, everything=walked)
        made = Claim(f"frozen={describe(frozen)}", selected=found.tensors)
        made._add(found.modules, found.tensors)
    else:
        made = _by_flags_and_parts(model, walked)
    _leave_out_what_follows(walked, made)
    return made


def _by_flags_and_parts(model: nn.Module, everything: Places) -> Claim:
    made = Claim("requires_grad=False")
    try:
        flagged = select(model, FLAGGED, everything=everything)
        made._add(flagged.modules, flagged.tensors)
        made.flagged = set(made.modules)
    except SelectionError:
        made.text = "nothing: no flag is off, and no part is frozen"
    held = [(name, module) for name, module in everything.modules if _is_covered(module)]
    members = [entry for entry in everything.tensors if _is_member(entry)]
    made._add(held, members)
    if held or members:
        by_flag = "requires_grad=False, and " if made.text.startswith("requires") else ""
        made.text = f"{by_flag}fl.freeze"
    return made


# By records, which copies carry, too: to ask for the parts of a copy would give it some.
def _is_covered(module: nn.Module) -> bool:
    record = get(module)
    return record is not None and bool(record.holds)


def _is_member(entry: NamedTensor) -> bool:
    if entry.kind == "parameter":
        return covers(entry.owner, entry.attribute)
    return keeps_buffers(entry.owner)


def _leave_out_what_follows(everything: Places, made: Claim) -> None:
    for _, module in everything.modules:
        if id(module) in made.modules and follows_on_purpose(module):
            for buffer in module._buffers.values():
                made.tensors.pop(id(buffer), None)
