"""FrozenPart: the handle on what one freeze covers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor, nn

from frostline._names import Places, named_modules, named_tensors, places
from frostline._results import Change, Result
from frostline.errors import FreezeError, FrozenStateChanged, ModelGone
from frostline.freezing import (
    as_code,
    comparing,
    ignored,
    live_parts,
    printing,
    releasing,
    sealing,
    thawing,
)
from frostline.freezing.bound import Bound, is_swapped_by_torch
from frostline.freezing.record import Stats


@dataclass(eq=False)
class Terms:
    """What was agreed at the freeze: plain data, carried by copies and pickles.

    Attributes:
        part: id of the part; records of modules name it.
        select, exclude: the selectors, as the user wrote them.
        params, stats, mode: the three switches.
        modules: full names of the covered modules.
        held: full names of those that must stay in eval mode.
        tensors: full names of the covered tensors, at each of their places.
        frozen: full names of the covered parameters.
        others: full names of all other tensors that the model had.
        notes: what ``print(part)`` tells beside the counts.
    """

    part: str
    select: str
    exclude: str | None
    params: bool
    stats: Stats
    mode: str
    modules: list[str]
    held: list[str]
    tensors: list[str]
    frozen: list[str]
    others: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Both selectors in one."""
        return self.select + (f" without {self.exclude}" if self.exclude is not None else "")


class FrozenPart(Result):
    """What one call of :func:`frostline.freeze` holds: a handle, which keeps no model alive.

    Used in a ``with`` statement it is undone at the exit. Copies and pickles of the model own
    their parts: ``fl.parts(copy)`` gives them.

    Example:
        >>> import torch, frostline as fl
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
        >>> part = fl.freeze(net, "0")
        >>> sorted(part.tensors)
        ['0.bias', '0.weight']
        >>> part.changes()
        []
        >>> part.undo()
        >>> net[0].weight.requires_grad
        True
    """

    def __init__(self, root: nn.Module, terms: Terms, seal: sealing.Seal | None = None) -> None:
        self._root = ref(root)
        self._terms = terms
        self._seal = seal
        self._bound: Bound | None = None
        self._undone = False
        self._sealed_objects: dict[str, ReferenceType[Tensor]] = {}
        live_parts.add(self)

    # --- what it covers ------------------------------------------------------------------

    @property
    def model(self) -> nn.Module:
        """The model.

        Raises:
            ModelGone: if nobody else kept it.
        """
        root = self._root()
        if root is None:
            raise ModelGone(
                f"the model of this FrozenPart ({self._terms.text}) is gone; keep a reference to "
                "the model as long as you use the part"
            )
        return root

    @property
    def id(self) -> str:
        """What the records of modules call this part."""
        return self._terms.part

    def root_or_none(self) -> nn.Module | None:
        """The model, unless it is gone."""
        return self._root()

    def is_of(self, module: nn.Module) -> bool:
        """Whether ``module`` is the model that was frozen."""
        return self._root() is module

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Full name to tensor: parameters, buffers and plain tensor attributes, as they are now.

        A tied tensor stands under each of its names.
        """
        covered = set(self._terms.tensors)
        return {e.name: e.tensor for e in named_tensors(self.model) if e.name in covered}

    @property
    def modules(self) -> dict[str, nn.Module]:
        """Full name to module, for every module that the part covers; the root is ``""``."""
        covered = set(self._terms.modules)
        return {name: m for name, m in reversed(named_modules(self.model)) if name in covered}

    @property
    def switches(self) -> dict[str, Any]:
        """How it was frozen, in plain types: with a manifest this is enough to do it again."""
        t = self._terms
        return {
            "select": t.select,
            "exclude": t.exclude,
            "params": t.params,
            "stats": t.stats,
            "mode": t.mode,
            "modules": list(t.modules),
        }

    @property
    def undone(self) -> bool:
        """Whether it holds nothing any more."""
        return self._undone

    # --- whether it held -----------------------------------------------------------------

    def changes_of(self, tensor: Tensor | None) -> list[Change]:
        """How one tensor of the part differs from the seal, at each of its names."""
        self._refuse_if_undone()
        seal = self._seal
        if seal is None or tensor is None:
            return []
        names = [n for n, t in self.tensors.items() if t is tensor and n in seal.tensors]
        return [c for n in names if (c := sealing.compare(seal, n, tensor)) is not None]

    def structure_changes(self) -> list[Change]:
        """Flags and modes that are not as they should be, and additions; reads no tensor."""
        self._refuse_if_undone()
        return comparing.structure(self.model, self._terms)

    @property
    def sealed(self) -> bool:
        """Whether there is a content to compare with."""
        return self._seal is not None

    @property
    def ok(self) -> bool:
        """Whether nothing drifted since the seal; reads every byte."""
        return not any(change.severity == "drift" for change in self.changes())

    def seal(self) -> None:
        """Take the content as it is now as what the part is compared with.

        To be called after a load that was meant. Reads every byte once, where it lives.

        Raises:
            UnsupportedTensor: if a tensor has no content (meta) or none that can be read.
        """
        self._refuse_if_undone()
        tensors = self.tensors
        self._seal = sealing.take(tensors)
        self._sealed_objects = {
            name: ref(tensor) for name, tensor in tensors.items() if not is_swapped_by_torch(tensor)
        }

    def changes(self) -> list[Change]:
        """Compare content, flags and modes with the seal, byte by byte; drift comes first.

        Raises:
            FreezeError: if the part was never sealed.

        Example:
            >>> import torch, frostline as fl
            >>> net = torch.nn.Linear(2, 1)
            >>> part = fl.freeze(net)
            >>> net.weight.data += 1
            >>> [(change.name, change.kind) for change in part.changes()]
            [('weight', 'value')]
        """
        self._refuse_if_undone()
        if self._seal is None:
            raise FreezeError(
                f"the part {self._terms.text} is not sealed, so there is nothing to compare with. "
                "Call part.seal() when its weights are loaded"
            )
        found = comparing.changes(self.model, self._terms, self._seal, self._sealed_objects)
        return sorted(found, key=lambda change: change.severity != "drift")

    def assert_unchanged(self) -> None:
        """Raise if anything drifted since the seal.

        Raises:
            FrozenStateChanged: with the changes; casts and additions alone do not raise.
        """
        changes = self.changes()
        drift = [change for change in changes if change.severity == "drift"]
        if drift:
            raise FrozenStateChanged(printing.alarm(drift, len(self._terms.tensors)), changes)

    @property
    def ignored_calls(self) -> list[ignored.IgnoredCall]:
        """Calls that the hold ignored, with their counts and the first caller's line."""
        return ignored.collect(list(self.modules.values()))

    # --- letting go ----------------------------------------------------------------------

    def undo(self) -> None:
        """Put everything back as it was before this freeze; a second call does nothing.

        Flags, modes, classes, gradients and the optimizer state that was set aside. What another
        part covers stays frozen. A mode that somebody asked for meanwhile wins over the old one.
        """
        thawing.undo(self)
        self._undone = True

    def _refuse_if_undone(self) -> None:
        if self._undone:
            raise FreezeError(
                f"the part {self._terms.text} was undone and holds nothing any more. Freeze again: "
                "part = fl.freeze(model, ...)"
            )

    @contextmanager
    def released(self) -> Iterator[None]:
        """Plain classes in eval mode for the length of a block, then held again and verified.

        For consumers that ask for exact types (quantisation, scripting, operator fusion), and for
        saving a whole model that must load where frostline is not installed. ``requires_grad``
        stays False.

        Raises:
            FrozenStateChanged: at the exit, if the content changed inside the block.
        """
        self._refuse_if_undone()
        with releasing.released(self.model):
            yield
        if self._seal is not None:
            self.assert_unchanged()

    def as_code(self) -> str:
        """Plain PyTorch that holds the same part of this model, as text that runs.

        It defines ``freeze(model)``. What it does not do: prove, undo, or survive a copy.
        """
        self._refuse_if_undone()
        return as_code.text(self.model, self.id, self.frozen_parameters())

    def __enter__(self) -> FrozenPart:
        self._refuse_if_undone()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.undo()

    # --- for the registry of living parts ------------------------------------------------

    @property
    def sentinel(self) -> nn.Module | None:
        """See :class:`frostline.freezing.live_parts.LivePart`."""
        return None if self._root() is None else self._bind().sentinel

    def frozen_parameters(self) -> list[nn.Parameter]:
        """The parameters that the part covers now."""
        bound = self._bound_or_none()
        return [] if bound is None else bound.parameters()

    def flags_before(self) -> list[tuple[nn.Parameter, bool]]:
        """The same, each with its ``requires_grad`` before it was frozen."""
        bound = self._bound_or_none()
        return [] if bound is None else bound.flags_before()

    def modules_then(self) -> list[nn.Module]:
        """The modules that it covered when it was bound, wherever they hang now."""
        bound = self._bound_or_none()
        return [] if bound is None else bound.modules()

    def look_after(self, about_to_train: bool) -> None:
        """Freeze again what a loader made trainable; raise if a module was replaced."""
        if self._root() is None:
            return
        again = self._bind().freeze_again()
        if again:
            self._terms.notes.append(
                f"{again[0]} and {len(again) - 1} more: new trainable parameters were put in the "
                "place of frozen ones (a loader does this); they were frozen again"
            )
        if about_to_train:
            self._bind().refuse_replaced_modules(self._terms.text)

    def forget(self, tensors: set[str], modules: set[str], free: set[str]) -> bool:
        """Leave these names out, and let modules in ``free`` follow ``train()``.

        Whether the part covered any of the first two.
        """
        t = self._terms
        covered = not (tensors.isdisjoint(t.tensors) and modules.isdisjoint(t.modules))
        t.others += [name for name in t.tensors if name in tensors]
        t.tensors = [name for name in t.tensors if name not in tensors]
        t.frozen = [name for name in t.frozen if name not in tensors]
        t.modules = [name for name in t.modules if name not in modules]
        t.held = [name for name in t.held if name not in modules | free]
        self.bind()
        return covered

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left of it."""
        return not (self._terms.tensors or self._terms.modules)

    def bind(self, everything: Places | None = None) -> Bound:
        """Note which objects stand at the names of the part: others in their place are seen."""
        found = everything or places(self.model)
        self._bound = Bound(found, self._terms.frozen, self._terms.modules)
        return self._bound

    def _bind(self) -> Bound:
        # A part that was copied along with its model meets its objects when it first needs them.
        return self._bound or self.bind()

    def _bound_or_none(self) -> Bound | None:
        # Pieces of a model may outlive it in another one.
        return self._bound if self._root() is None else self._bind()

    # --- copies --------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenPart:
        # A part belongs to one model: inside a copy of that model, to the copy.
        copied = memo.get(id(self._root()))
        if copied is None:
            return self
        part = FrozenPart(copied, copy.deepcopy(self._terms, memo), self._seal)
        memo[id(self)] = part
        return part

    def __reduce__(self) -> tuple[Any, ...]:
        return (FrozenPart, (self.model, self._terms, self._seal))

    # --- how it looks --------------------------------------------------------------------

    def __str__(self) -> str:
        root = self._root()
        if root is None or self._undone:
            return f"FrozenPart  {self._terms.text}  ({self._why_not()})"
        return printing.part(root, self._terms, self._seal, self.ignored_calls)

    def __repr__(self) -> str:
        over = f", {self._why_not()}" if self._root() is None or self._undone else ""
        return f"<FrozenPart {self._terms.text}, {len(self._terms.tensors)} tensors{over}>"

    def _why_not(self) -> str:
        return "undone" if self._undone else "its model is gone"

    def to_dict(self) -> dict[str, Any]:
        """The switches, the counts and what was ignored, in plain types."""
        return {
            "version": 1,
            **self.switches,
            "tensors": list(self._terms.tensors),
            "sealed": self.sealed,
            "notes": list(self._terms.notes),
            "ignored": [vars(call) for call in self.ignored_calls],
        }

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise TypeError(
            "fl.freeze works in place and returns a handle, not the model. Drop the assignment: "
            "write fl.freeze(model, ...) and go on calling model(...)"
        )

    def __getattr__(self, name: str) -> Any:
        hint = ""
        if hasattr(nn.Module, name):
            hint = (
                f". nn.Module has {name!r}: fl.freeze works in place and returns a handle, not "
                "the model. Write fl.freeze(model, ...) without assigning it to model"
            )
        raise AttributeError(f"'FrozenPart' object has no attribute {name!r}{hint}")
