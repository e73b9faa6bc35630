"""What runs of the frozen part show: whether it repeats itself, sees other samples, has modes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from frostline.auditing.measuring.sandbox import sandbox
from frostline.auditing.rerunning import Salted, Whole
from frostline.auditing.subject import Facts
from frostline.errors import BatchError
from frostline.freezing.planning import unwrapped
from frostline.probing.calls import Passing, Visit
from frostline.probing.outside import modules_beside
from frostline.probing.probe import look
from frostline.probing.putting_back import from_the_same_start
from frostline.probing.running import Loss, running
from frostline.probing.runs import Again, First
from frostline.probing.samples import Samples, taken_from

_MOST = 4  # samples in each run; with two, a norm gives 1 and -1 whatever they are


@dataclass(frozen=True, eq=False)
class Differing:
    """A frozen module whose own doing differs between two runs with the same inputs.

    Attributes:
        facts: of the module.
        effect: largest difference of an element, in root mean squares of the tensor; infinite
            where a number became none.
    """

    facts: Facts
    effect: float

    @property
    def name(self) -> str:
        """Full name of the module."""
        return self.facts.name


@dataclass(frozen=True, eq=False)
class Probes:
    """What runs of the frozen part showed, on a few samples of the batch.

    Attributes:
        unsteady: modules that give other outputs from the same inputs, in eval mode and with
            another random state; those that do so by themselves, in the order of the run.
        coupled: modules that couple samples of the batch, in the modes as they are.
        coupled_by_train: those that do so only after ``model.train()``; asked where a module is of
            no class that is known. Of the others it is known: norms that use the batch.
        by_mode: modules that give other outputs in training mode than in eval mode, from the same
            inputs; those that do so by themselves, in the order of the run.
        outputs: what that makes in the output of each outermost frozen module that is called.
        notes: what could not be told, in words.
    """

    unsteady: tuple[Differing, ...] = ()
    coupled: tuple[Differing, ...] = ()
    coupled_by_train: tuple[Differing, ...] = ()
    by_mode: tuple[Differing, ...] = ()
    outputs: tuple[Differing, ...] = ()
    notes: tuple[str, ...] = ()


def probe(
    model: nn.Module,
    modules: Sequence[Facts],
    batch: Any,
    compute_loss: Loss | None,
    moved: Container[int] = frozenset(),
) -> Probes:
    """Run the model on a few samples of ``batch`` and see what its frozen modules do.

    Everything is put back.

    Args:
        model: the root.
        modules: facts of its modules.
        batch: a real batch, of which 2 to 8 samples are used.
        compute_loss: how the model is run; without, it is called on the samples.
        moved: ids of tensors that a step changes. A module whose frozen parameters are among them
            is left out: between two runs it is not the same.

    Example:
        >>> from frostline._names import places
        >>> from frostline.auditing.claim import claim
        >>> from frostline.auditing.gathering import gather
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).requires_grad_(False)
        >>> facts = gather(net, places(net), claim(net, None))
        >>> probe(net, facts, torch.randn(4, 2), None).by_mode[0].name
        '1'
    """
    frozen = [facts for facts in modules if facts.frozen and not _moves(facts, moved)]
    if not frozen:
        return Probes()
    model = unwrapped(model)
    beside = () if compute_loss is None else modules_beside(model, compute_loss)
    with sandbox(model, None, batch, beside):
        return _Probing(model, frozen, batch, compute_loss, beside).probes()


def _moves(facts: Facts, moved: Container[int]) -> bool:
    own = facts.module._parameters.values()
    return any(p is not None and not p.requires_grad and id(p) in moved for p in own)


class _Probing:
    """The probes of one model, one after the other; one that fails leaves a note."""

    def __init__(
        self,
        model: nn.Module,
        frozen: Sequence[Facts],
        batch: Any,
        compute_loss: Loss | None,
        beside: Sequence[nn.Module],
    ) -> None:
        self._model, self._batch, self._loss, self._beside = model, batch, compute_loss, beside
        self._frozen = {id(facts.module): facts for facts in frozen}
        self._run = running(model, compute_loss)
        self._notes: list[str] = []
        self._samples: Samples | None = None
        self._grad = False
        with self._noting("whether the frozen part couples samples"):
            self._samples = taken_from([batch], _MOST)

    def probes(self) -> Probes:
        """Run all of them."""
        unsteady, by_mode, outputs = self._compared()
        coupled = self._coupled(train=False)
        known = {each.name for each in coupled}
        more = self._coupled(train=True) if self._may_couple_by_train else ()
        new = tuple(each for each in more if each.name not in known)
        return Probes(unsteady, coupled, new, by_mode, outputs, tuple(self._notes))

    @property
    def _may_couple_by_train(self) -> bool:
        """Whether ``train()`` changes the mode of a module that no registry knows."""
        facts = (f for f in self._frozen.values() if f.after_train != f.training)
        return any(f.behaviour is not None and not f.behaviour.sure for f in facts)

    # --- two runs compared ----------------------------------------------------------------------

    def _compared(self) -> tuple[tuple[Differing, ...], ...]:
        first = self._first()
        if first is None:
            return (), (), ()
        repeated, trained = Again(first.base), Again(first.base)
        whole = Whole(first, self._tops(first))
        with self._noting("whether the frozen part repeats itself in eval mode"):
            self._watched(repeated, training=False, salt=1)
        if any(f.after_train != f.after_eval for f in self._frozen.values()):
            with self._noting("what the frozen part gives in training mode"):
                self._watched(trained, training=True)
                self._watched(whole, training=True)
        runs = (repeated, trained, whole)
        found = [self._told((first.places[s], size) for s, size in r.changed.items()) for r in runs]
        return tuple(found)

    def _first(self) -> First | None:
        with self._noting("what the frozen part gives in eval mode"):
            first = First()
            with suppress(RuntimeError):  # it asks for gradients itself, as a gradient penalty does
                self._watched(first, training=False)
                return first
            self._grad, first = True, First()
            self._watched(first, training=False)
            return first
        return None

    def _watched(self, visit: Visit, *, training: bool, salt: int = 0) -> None:
        batch = self._batch if self._samples is None else self._samples.batch()
        with from_the_same_start([self._model, *self._beside]):
            self._model.train(training)
            for module in self._model.modules():
                if training and id(module) not in self._frozen:
                    module.training = False
            Salted(self._model, visit, salt)
            with torch.set_grad_enabled(self._grad):
                self._run(batch)

    def _tops(self, first: First) -> list[nn.Module]:
        """Frozen modules that are called, and nothing frozen around them is."""
        called = {id(p.call) for p in first.places.values() if p.site.side == "out"}
        covered: set[int] = set()
        tops = []
        for key, facts in self._frozen.items():  # parents first
            if facts.parent is not None and id(facts.parent.module) in covered:
                covered.add(key)
            elif key in called:
                covered.add(key)
                tops.append(facts.module)
        return tops

    # --- samples --------------------------------------------------------------------------------

    def _coupled(self, *, train: bool) -> tuple[Differing, ...]:
        if self._samples is None:
            return ()
        with self._noting("whether the frozen part couples samples"):
            with from_the_same_start([self._model, *self._beside]):
                if train:
                    self._model.train()
                _, found = look(self._model, self._run, self._samples, beside=self._beside)
            if not found.moved:
                raise BatchError("nothing moved when samples were replaced by others")
            return self._told((mixed.place, mixed.effect) for mixed in found.mixed)
        return ()

    # --- telling --------------------------------------------------------------------------------

    def _told(self, changed: Iterable[tuple[Passing, float]]) -> tuple[Differing, ...]:
        """The frozen modules whose code made what changed, each once, with the largest effect."""
        effects: dict[int, float] = {}
        for place, size in changed:
            key = id(place.owner)
            if key in self._frozen:
                effects[key] = max(size, effects.get(key, 0.0))
        return tuple(Differing(self._frozen[key], size) for key, size in effects.items())

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            text = str(error.__cause__ or error).strip().partition("\n")[0]
            self._notes.append(f"{what} could not be told: {text}")
