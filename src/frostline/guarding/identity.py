"""Identity: is each name still the same object, at the same address, in the same mode?

No byte is read, so this says what was exchanged and not what was written. It costs about 0.2 ms
for 1,000 tensors, and comes first: the other tiers read memory, and must know that it is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, is_, ne
from typing import Any

import torch
from torch import Tensor, nn

from frostline._names import join, places
from frostline.errors import UnsupportedTensor
from frostline.guarding import local
from frostline.guarding.target import Target, Watched

ROTATION = 16
"""Steps within which shape, dtype, stride and flag of every tensor are looked at."""

_version = attrgetter("_version")
_training = attrgetter("training")
_requires_grad = attrgetter("requires_grad")


@dataclass(eq=False)
class Look:
    """What is not as it was.

    Attributes:
        replaced: tensors of which a place holds another object now, or none.
        moved: tensors whose memory is elsewhere, or whose shape, dtype or stride is another.
        flagged: parameters whose ``requires_grad`` was switched on.
        modes: names of modules that went into training mode since the last look.
        modules: full names at which another module hangs now.
    """

    replaced: list[Watched] = field(default_factory=list)
    moved: list[Watched] = field(default_factory=list)
    flagged: list[Watched] = field(default_factory=list)
    modes: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)


class Identity:
    """The objects of a target as they were, in columns, so that a look is a few C loops."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._counted: list[Watched] = []
        self.versions: list[int] = []
        self.rebase()

    def rebase(self) -> None:
        """Take what is there now as what has to stay."""
        tensors = self._target.tensors
        slots = [(w, place) for w in tensors for place in w.places]
        self._slots = [w for w, _ in slots]
        self._tables = [_table(place.owner, place.kind) for _, place in slots]
        self._keys = [place.attribute for _, place in slots]
        self._objects = [place.tensor for _, place in slots]
        self._links = list(_links(self._target))
        self._pieces = [(w, piece) for w in tensors for piece in _leaves(w.tensor)]
        self._tensors = [piece for _, piece in self._pieces]
        self._wrappers = [(w, _leaves(w.tensor)) for w in tensors if _is_wrapper(w.tensor)]
        self._pointers = list(map(Tensor.data_ptr, self._tensors))
        self._forms = [_form(piece) for piece in self._tensors]
        known = self._known_versions()
        self._counted = [w for w in tensors if not w.tensor.is_inference()]
        self.versions = self._versions_kept(known)
        self._by_flag = [w for w in tensors if w.by_flag and isinstance(w.tensor, nn.Parameter)]
        self._flags = [w.tensor for w in self._by_flag]
        self._modules = list(_modules(self._target))
        self._modes = [_training(m) for _, m in self._modules]
        self._round = 0

    def look(self, everything: bool = False) -> Look:
        """Compare with what was there at the last :meth:`rebase`.

        Args:
            everything: look at shape, dtype, stride and flag of all tensors, not of one in 16.
        """
        found = Look()
        self._look_at_places(found)
        self._look_at_memory(found)
        self._look_at_modes(found)
        self._round = (self._round + 1) % ROTATION
        # Whoever hears of a change takes all that is there now as right, so nothing may be left.
        everything = everything or bool(found.replaced or found.moved or found.modules)
        self._look_at_forms(
            found, slice(None) if everything else slice(self._round, None, ROTATION)
        )
        return found

    def _look_at_memory(self, found: Look) -> None:
        now = list(map(Tensor.data_ptr, self._tensors))
        if now != self._pointers:
            found.moved += [
                w for (w, _), a, b in zip(self._pieces, now, self._pointers, strict=True) if a != b
            ]
        for watched, leaves in self._wrappers:
            here = _leaves(watched.tensor)
            if len(here) != len(leaves) or not all(map(is_, here, leaves)):
                found.moved.append(watched)

    def _look_at_modes(self, found: Look) -> None:
        modes = [_training(m) for _, m in self._modules]
        if modes != self._modes:
            found.modes += [
                name
                for (name, _), now_, was in zip(self._modules, modes, self._modes, strict=True)
                if now_ and not was
            ]
            self._modes = modes

    @property
    def stands_still(self) -> bool:
        """Whether every object is at its name, and its memory where it was."""
        here = map(dict.get, self._tables, self._keys)
        links = (table.get(key) is module for _, table, key, module in self._links)
        same = all(map(is_, here, self._objects)) and all(links)
        return same and list(map(Tensor.data_ptr, self._tensors)) == self._pointers

    def elsewhere(self) -> list[Watched]:
        """Tensors that are another object, or have other memory, than at the last rebase."""
        if self.stands_still:
            return []
        found = Look()
        self._look_at_places(found)
        self._look_at_memory(found)
        return unique([*found.replaced, *found.moved])

    def versions_moved(self) -> set[int]:
        """Ids of the tensors whose version counter moved since last asked: a hint, no proof."""
        now = self._versions_now()
        if now == self.versions:
            return set()
        moved = map(ne, now, self.versions)
        found = {id(w.tensor) for w, m in zip(self._counted, moved, strict=True) if m}
        self.versions = now
        return found

    def thawed(self) -> list[Watched]:
        """Parameters that flags alone froze, and that are trainable now."""
        if not any(map(_requires_grad, self._flags)):
            return []
        return [w for w in self._by_flag if w.tensor.requires_grad]

    def _known_versions(self) -> dict[int, int]:
        return {id(w.tensor): v for w, v in zip(self._counted, self.versions, strict=True)}

    def _versions_kept(self, known: dict[int, int]) -> list[int]:
        """As they were when last asked for: what moved since is still to be told."""
        tensors = [w.tensor for w in self._counted]
        return [known.get(id(tensor), _version(tensor)) for tensor in tensors]

    def _versions_now(self) -> list[int]:
        return [_version(w.tensor) for w in self._counted]

    def _look_at_places(self, found: Look) -> None:
        here = map(dict.get, self._tables, self._keys)
        if not all(map(is_, here, self._objects)):
            found.replaced += [
                w
                for w, table, key, was in zip(
                    self._slots, self._tables, self._keys, self._objects, strict=True
                )
                if table.get(key) is not was
            ]
        found.modules += [name for name, table, key, m in self._links if table.get(key) is not m]

    def _look_at_forms(self, found: Look, which: slice) -> None:
        moved = {id(w) for w in found.moved}
        for (watched, piece), form in zip(self._pieces[which], self._forms[which], strict=True):
            if _form(piece) != form and id(watched) not in moved:
                found.moved.append(watched)
        for watched in self._target.tensors[which]:
            if watched.tensor.requires_grad and is_frozen_parameter(watched):
                found.flagged.append(watched)


def is_frozen_parameter(watched: Watched) -> bool:
    """Whether something said that this parameter is frozen, so that its flag must stay off."""
    return isinstance(watched.tensor, nn.Parameter) and (
        watched.by_flag or (watched.part is not None and bool(watched.part.switches["params"]))
    )


def _table(owner: nn.Module, kind: str) -> dict[str, Any]:
    if isinstance(owner, torch.jit.ScriptModule):
        raise UnsupportedTensor(
            f"a {type(owner).__name__} keeps its tensors out of Python's reach. Guard the model "
            "that it was scripted from"
        )
    if kind == "parameter":
        return owner._parameters
    return owner._buffers if kind == "buffer" else vars(owner)


def _is_wrapper(tensor: Tensor) -> bool:
    return hasattr(type(tensor), "__tensor_flatten__") or local.is_shard(tensor)


def _leaves(tensor: Tensor) -> list[Tensor]:
    """The objects that have the memory: itself, or what a wrapper subclass consists of now.

    No alias of them: assigning to ``.data`` moves the object and leaves its aliases behind.
    """
    tensor = local.of(tensor)
    if not hasattr(type(tensor), "__tensor_flatten__"):
        return [tensor]
    attributes, _ = tensor.__tensor_flatten__()  # type: ignore[attr-defined]
    return [leaf for name in attributes for leaf in _leaves(getattr(tensor, name))]


def _form(piece: Tensor) -> tuple[Any, ...]:
    layout = piece.dtype, piece.shape, piece.stride(), piece.storage_offset()
    return *layout, piece.is_conj(), piece.is_neg()


def _links(target: Target) -> Iterator[tuple[str, dict[str, Any], str, nn.Module]]:
    """Every step from a model down to an owner of a watched tensor."""
    owners = {id(place.owner) for w in target.tensors for place in w.places}
    for model in target.models:
        for name, parent in places(model).modules:
            for key, child in parent._modules.items():
                if child is not None and any(id(m) in owners for m in child.modules()):
                    yield join(name, key), parent._modules, key, child


def _modules(target: Target) -> Iterator[tuple[str, nn.Module]]:
    """The modules that hold watched tensors, each once."""
    seen: set[int] = set()
    for watched in target.tensors:
        for place in watched.places:
            if id(place.owner) not in seen:
                seen.add(id(place.owner))
                yield place.name.rpartition(".")[0], place.owner


def unique(found: Sequence[Watched]) -> list[Watched]:
    """Each tensor once."""
    return list({id(watched): watched for watched in found}.values())
