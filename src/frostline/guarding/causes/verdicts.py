"""A verdict on one tensor, the scene it is found at, and how equal verdicts become one cause."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from frostline._collapsing import collapse
from frostline._results import Severity
from frostline.freezing.sealing import bits_differ
from frostline.guarding import local
from frostline.guarding.causes.evidence import TensorEvidence, WindowEvidence
from frostline.guarding.reference import sampled

_SHOWN = 3  # patterns in a sentence


@dataclass(frozen=True)
class Verdict:
    """Why one tensor changed.

    Attributes:
        kind: of the cause.
        subject: full name of what the sentence is about, a module or a tensor.
        says: the sentence, ``{}`` where the subject belongs.
        mend: what to do, ``{}`` where a selector of the subject belongs.
        severity: whether it is drift.
    """

    kind: str
    subject: str
    says: str
    mend: str | None = None
    severity: Severity = "drift"


@dataclass(frozen=True)
class Pair:
    """Old and new values of the same elements, flat, on the CPU, of one dtype each."""

    old: Tensor
    new: Tensor
    whole: bool

    @property
    def wide(self) -> tuple[Tensor, Tensor]:
        """Both in float64, for arithmetic."""
        return self.old.double(), self.new.double()

    @cached_property
    def differ(self) -> Tensor:
        """One bool an element; all of them where the dtype is another."""
        if self.old.dtype != self.new.dtype:
            return self.old != self.new.to(self.old.dtype)
        return bits_differ(self.old, self.new)


class Scene:
    """All evidence of one look, and what follows from several pieces of it."""

    def __init__(self, evidences: Sequence[TensorEvidence], window: WindowEvidence) -> None:
        self.evidences, self.window = evidences, window
        self._by_owner: dict[int, dict[str, TensorEvidence]] = {}
        for e in evidences:
            self._by_owner.setdefault(id(e.owner), {})[e.attribute] = e
        self._pairs: dict[int, Pair | None] = {}

    def beside(self, e: TensorEvidence) -> dict[str, TensorEvidence]:
        """What changed of the module that holds ``e``, by attribute; ``e`` included."""
        return self._by_owner[id(e.owner)]

    def pair(self, e: TensorEvidence) -> Pair | None:
        """Old and new values, as far as old ones were kept."""
        if id(e) not in self._pairs:
            self._pairs[id(e)] = _pair(e)
        return self._pairs[id(e)]

    def above(self, e: TensorEvidence) -> nn.Module | None:
        """The module that holds the owner of ``e``."""
        parent = self._parents.get(id(e.owner))
        # A ModuleDict or a list between them only keeps order.
        while isinstance(parent, nn.ModuleDict | nn.ModuleList):
            parent = self._parents.get(id(parent))
        return parent

    @cached_property
    def _parents(self) -> dict[int, nn.Module]:
        return {
            id(child): module
            for model in self.window.models
            for module in model.modules()
            for child in module.children()
        }


def _pair(e: TensorEvidence) -> Pair | None:
    if e.tensor is None:
        return None
    new = local.of(e.tensor).detach()
    if type(new) not in (Tensor, nn.Parameter, nn.Buffer):
        return None
    if e.old is not None:
        old = local.of(e.old).detach()
        same = type(old) is Tensor and old.shape == new.shape
        return Pair(old.cpu().reshape(-1), new.cpu().reshape(-1), True) if same else None
    if e.sample is None or int(e.sample[0].max()) >= new.numel():
        return None
    return Pair(e.sample[1].cpu(), sampled(new, e.sample[0]), False)


def owner_name(e: TensorEvidence) -> str:
    """Full name of the module that holds it."""
    return e.name.rpartition(".")[0]


def subjects(names: Iterable[str], noun: str) -> str:
    """Names in a sentence, numbered siblings joined."""
    patterns = collapse(names)
    shown = [
        (pattern or "the model") + (f" ({count:,} {noun}s)" if count > 1 else "")
        for pattern, count in patterns[:_SHOWN]
    ]
    rest = sum(count for _, count in patterns[_SHOWN:])
    return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def selector(names: Iterable[str]) -> str:
    """What to write as ``select`` for these modules or tensors: one name, or their parent."""
    each = list(dict.fromkeys(names))
    if len(each) == 1:
        return repr(each[0])
    shared = ".".join(_shared(each))
    if shared:
        return repr(shared)
    tops = list(dict.fromkeys(name.partition(".")[0] for name in each))
    return repr(tops[0]) if len(tops) == 1 else "[" + ", ".join(map(repr, tops)) + "]"


def _shared(names: Sequence[str]) -> list[str]:
    """The parts that all of these names begin with."""
    found: list[str] = []
    for column in zip(*(name.split(".") for name in names), strict=False):
        if len(set(column)) > 1:
            break
        found.append(column[0])
    return found


def covers(module: nn.Module, owner: nn.Module) -> bool:
    """Whether ``owner`` is ``module`` or hangs below it."""
    return any(m is owner for m in module.modules())
