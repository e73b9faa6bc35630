"""Run a change under observers, gather evidence, and ask for its cause."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from frostline._names import NamedTensor, named_tensors
from frostline.guarding.causes import evidence, observing
from frostline.guarding.causes import finding as causes
from frostline.selection import select
from tests.freezing.content import raw
from tests.zoo import ZOO, seeded

Memory = Literal["copies", "samples", "nothing"]
MEMORIES: tuple[Memory, ...] = ("copies", "samples", "nothing")

HOW = ("replaced object", "rebound data", "in-place operation", "write past autograd", "unknown")
"""Kinds that say how it was written and not by whom: less than asked for, and never a lie."""


class Live:
    """A model with a frozen part, and whatever a change needs of its past."""

    def __init__(self, model: nn.Module, batch: Any, loss: Callable[..., Tensor]) -> None:
        self.model, self.batch, self.loss = model, batch, loss
        self.past: dict[str, Any] = {}

    def forward(self, *, train: bool = True) -> None:
        self.model.train(train)
        self.loss(self.model, self.batch)

    def __getitem__(self, name: str) -> Any:
        found: Any = self.model
        for part in name.split("."):
            found = getattr(found, part)
        return found


Do = Callable[[Live], object]


class Case(NamedTuple):
    """A change as users make it, and who is to be named for it.

    Attributes:
        name: what is done.
        model: key of the zoo, or a function that makes a model with inputs and a loss.
        do: does it, while the guard would watch.
        expected: the kind; or a kind by attribute, ``*`` for the others.
        frozen: a selector of what is watched.
        before: what happened before the guard.
    """

    name: str
    model: str | Callable[[], Live]
    do: Do
    expected: str | dict[str, str]
    frozen: str | None = None
    before: Do | None = None

    def kind_of(self, attribute: str) -> str:
        if isinstance(self.expected, str):
            return self.expected
        return self.expected.get(attribute, self.expected.get("*", "unknown"))


class Answer(NamedTuple):
    """What was said about one tensor."""

    name: str
    expected: str
    said: str
    text: str
    mend: str | None

    @property
    def is_right(self) -> bool:
        return self.said == self.expected

    @property
    def is_vague(self) -> bool:
        if self.is_right or self.said not in HOW:
            return False
        return self.said == "unknown" or self.expected not in HOW

    @property
    def is_wrong(self) -> bool:
        return not self.is_right and not self.is_vague


class Recorder:
    """A listener that keeps what it hears as evidence."""

    def __init__(self, model: nn.Module, frozen: dict[str, Tensor]) -> None:
        self.window = evidence.WindowEvidence(models=[model])
        self.skips: list[Optimizer] = []
        self.saves: list[nn.Module] = []
        self._frozen = frozen

    def loaded(self, module: nn.Module, keys: Any, where: str) -> None:
        self.window.loads.append(evidence.Load(module, keys, where))

    def converted(self, module: nn.Module, where: str) -> None:
        self.window.conversions.append(evidence.Conversion(module, where))

    def applied(self, module: nn.Module, function: str, where: str) -> None:
        self.window.applies.append(evidence.Apply(module, function, where))

    def skipped(self, optimizer: Optimizer) -> None:
        self.skips.append(optimizer)

    def saving(self, module: nn.Module) -> None:
        self.saves.append(module)

    def before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.window.steps.append(evidence.before_step(optimizer, self._frozen))


@contextmanager
def listening(recorder: Recorder) -> Iterator[Recorder]:
    handle = register_optimizer_step_pre_hook(recorder.before_step)
    observing.listen(recorder)
    try:
        yield recorder
    finally:
        observing.unlisten(recorder)
        handle.remove()


class Was(NamedTuple):
    """One tensor at the beginning."""

    entry: NamedTensor
    bytes: Any
    copy: Tensor
    version: int
    pointer: int
    storage: torch.UntypedStorage  # kept, so that nothing new comes to lie at its address


@cache
def _built(name: str) -> nn.Module:
    return ZOO[name].build()


def build(case: Case) -> Live:
    with seeded(1):
        if not isinstance(case.model, str):
            return case.model()
        entry = ZOO[case.model]
        live = Live(copy.deepcopy(_built(case.model)), entry.batch(), entry.loss)
    for chosen in select(live.model, case.frozen or entry.backbone).tensors:
        if chosen.kind == "parameter":
            chosen.tensor.requires_grad_(False)
    return live


def watched(case: Case, live: Live) -> list[NamedTensor]:
    default = ZOO[case.model].backbone if isinstance(case.model, str) else None
    return select(live.model, case.frozen or default).tensors


def changed(case: Case) -> tuple[list[evidence.TensorEvidence], evidence.WindowEvidence]:
    """Do it, and say what is known of every tensor that is not as it was, all old values kept."""
    live = build(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.before is not None:
            case.before(live)
        was = [
            Was(
                entry,
                raw(entry.tensor),
                entry.tensor.detach().clone(),
                entry.tensor._version,
                entry.tensor.data_ptr(),
                entry.tensor.untyped_storage(),
            )
            for entry in watched(case, live)
        ]
        recorder = Recorder(live.model, {w.entry.name: w.entry.tensor for w in was})
        with listening(recorder), seeded(7):
            case.do(live)
    now = {t.name: t for t in named_tensors(live.model)}
    found = [_evidence(w, now.get(w.entry.name)) for w in was]
    return [e for e, w in zip(found, was, strict=True) if _is_other(e, w)], recorder.window


def _is_other(e: evidence.TensorEvidence, was: Was) -> bool:
    return e.tensor is None or raw(e.tensor) != was.bytes


def _evidence(was: Was, now: NamedTensor | None) -> evidence.TensorEvidence:
    entry = now if now is not None else was.entry
    same = now is not None and now.tensor is was.entry.tensor
    return evidence.TensorEvidence(
        name=was.entry.name,
        owner=entry.owner,
        attribute=entry.attribute,
        kind=entry.kind,
        tensor=None if now is None else now.tensor,
        old=was.copy,
        sample=None,
        version_moved=was.entry.tensor._version != was.version,
        pointer_moved=not same or entry.tensor.data_ptr() != was.pointer,
        replaced=now is not None and not same,
    )


def remember(e: evidence.TensorEvidence, memory: Memory) -> evidence.TensorEvidence:
    """As a guard would know it: counters are always kept, of the rest all, some, or no values."""
    old = e.old
    if memory == "copies" or old is None or (memory == "samples" and old.numel() <= 32):
        return e
    sample = None
    if memory == "samples":
        draw = torch.Generator().manual_seed(old.numel())
        places = torch.randint(old.numel(), (min(256, old.numel()),), generator=draw).unique()
        sample = places, old.reshape(-1)[places]
    return evidence.TensorEvidence(
        e.name, e.owner, e.attribute, e.kind, e.tensor, None, sample,
        e.version_moved, e.pointer_moved, e.replaced,
    )  # fmt: skip


def answers(
    case: Case, found: list[evidence.TensorEvidence], window: evidence.WindowEvidence
) -> dict[Memory, list[Answer]]:
    """What is said about every changed tensor, for each way of remembering old values."""
    return {memory: asked(case, found, window, memory) for memory in MEMORIES}


def asked(
    case: Case,
    found: list[evidence.TensorEvidence],
    window: evidence.WindowEvidence,
    memory: Memory,
) -> list[Answer]:
    remembered = [remember(e, memory) for e in found]
    by_name = {n: c for c in causes.find(remembered, window) for n in c.names}
    return [
        Answer(e.name, case.kind_of(e.attribute), c.kind, c.text, c.mend)
        for e in remembered
        for c in [by_name[e.name]]
    ]
