"""From suspects to changes: how much, since when, why, and which line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from operator import is_
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline._results import Change
from frostline.guarding.causes import evidence, finding
from frostline.guarding.engine import Engine, Suspect
from frostline.guarding.sizing import Size, size
from frostline.guarding.target import Watched
from frostline.guarding.witness import Witness

_log = logging.getLogger("frostline")
_KEPT = 1024  # events that are kept as evidence for the next full check


class Explaining:
    """Gathers evidence between two looks, and explains what the second one found.

    Two horizons: identity and pages see a change at the next look; content and full checks may see
    it long after, so what was gathered since the last full check is evidence for those.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tensors: list[Watched] = []
        self._inside: WeakKeyDictionary[Optimizer, tuple[int, dict[str, Tensor]]]
        self._inside = WeakKeyDictionary()
        self._window, self._long = self._nothing(), self._nothing()
        self._moved: set[int] = set()

    def _nothing(self) -> evidence.WindowEvidence:
        return evidence.WindowEvidence(models=self._engine.target.models)

    def look_ended(self) -> None:
        """What comes is evidence for the next look."""
        self._remember()
        self._moved |= self._engine.identity.versions_moved()

    def _remember(self) -> None:
        short, self._window = self._window, self._nothing()
        self._long.loads += short.loads
        self._long.conversions += short.conversions
        self._long.applies += short.applies
        for events in (self._long.loads, self._long.conversions, self._long.applies):
            del events[:-_KEPT]
        # Steps without a gradient of anything frozen are all alike: one of each optimizer will do.
        alike = {id(step.optimizer) for step in self._long.steps if not step.zero_grads}
        for step in short.steps:
            if step.zero_grads or id(step.optimizer) not in alike:
                self._long.steps.append(step)
            if not step.zero_grads:
                alike.add(id(step.optimizer))
        del self._long.steps[:-_KEPT]

    def all_was_read(self) -> None:
        """What comes is evidence for the next full check."""
        self.look_ended()
        self._long = self._nothing()
        self._moved.clear()

    # --- evidence -------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer) -> None:
        """Note what the optimizer has of the frozen tensors."""
        tensors = self._engine.target.tensors
        if len(tensors) != len(self._tensors) or not all(map(is_, tensors, self._tensors)):
            self._tensors = list(tensors)
            self._inside.clear()
        size = sum(len(group["params"]) for group in optimizer.param_groups)
        known = self._inside.get(optimizer)
        if known is None or known[0] != size:
            given = {id(p) for group in optimizer.param_groups for p in group["params"]}
            inside = {w.name: w.tensor for w in tensors if id(w.tensor) in given}
            known = self._inside[optimizer] = size, inside
        self._window.steps.append(evidence.before_step(optimizer, known[1]))

    def loaded(self, module: nn.Module, keys: Mapping[str, Tensor | None], where: str) -> None:
        """Somebody called ``load_state_dict``."""
        self._window.loads.append(evidence.Load(module, keys, where))

    def converted(self, module: nn.Module, where: str) -> None:
        """Somebody moved or cast a module."""
        self._window.conversions.append(evidence.Conversion(module, where))

    def applied(self, module: nn.Module, function: str, where: str) -> None:
        """Somebody called ``module.apply(function)``."""
        self._window.applies.append(evidence.Apply(module, function, where))

    # --- explanation ----------------------------------------------------------------------

    def changes(
        self,
        suspects: Sequence[Suspect],
        since: Callable[[Suspect], int],
        step: int,
        witness: Witness,
    ) -> list[Change]:
        """One change for each suspect, drift first."""
        if not suspects:
            return []
        found = self._causes(suspects)
        by_name = {name: cause for cause in found for name in cause.names}
        changes = [
            self._change(s, by_name.get(s.watched.name), since(s), step, witness) for s in suspects
        ]
        return sorted(changes, key=lambda change: change.severity != "drift")

    def _causes(self, suspects: Sequence[Suspect]) -> list[finding.Cause]:
        altered = [s for s in suspects if s.kind in ("value", "dtype")]
        just_now = [s for s in altered if s.tier in ("identity", "pages")]
        long_ago = [s for s in altered if s not in just_now]
        moved = self._engine.identity.versions_moved()
        found = _find([self._evidence(s, moved) for s in just_now], self._window)
        self._moved |= moved
        if long_ago:
            self._remember()
            found += _find([self._evidence(s, self._moved) for s in long_ago], self._long)
        return found

    def _evidence(self, suspect: Suspect, moved: set[int]) -> evidence.TensorEvidence:
        watched, old = suspect.watched, suspect.reference.old
        place = watched.places[0]
        sample = None if old.values is None or old.indices is None else (old.indices, old.values)
        return evidence.TensorEvidence(
            name=watched.name,
            owner=place.owner,
            attribute=place.attribute,
            kind=place.kind,
            tensor=suspect.now,
            old=old.copy,
            sample=sample,
            version_moved=None if watched.tensor.is_inference() else id(watched.tensor) in moved,
            pointer_moved=suspect.rebound,
            replaced=suspect.replaced,
        )

    def _change(
        self,
        suspect: Suspect,
        cause: finding.Cause | None,
        since: int,
        step: int,
        witness: Witness,
    ) -> Change:
        measured = size(suspect.reference, suspect.now) if suspect.kind == "value" else Size()
        culprit = witness.culprit(suspect.watched.name)
        is_cast = cause is not None and cause.kind == "cast"
        harmless = suspect.kind == "replaced" or (cause is not None and cause.severity == "report")
        harmless = harmless or (is_cast and _seal_says_cast(suspect))
        return Change(
            suspect.watched.name,
            "cast" if is_cast else suspect.kind,
            severity="report" if harmless else "drift",
            step=step,
            tier=suspect.tier,
            cause=_cause(suspect, cause),
            culprit=culprit.where if culprit is not None else None,
            max_abs=measured.max_abs,
            changed_elements=measured.changed,
            elements=measured.elements,
            since=since,
            mend=cause.mend if cause is not None else None,
        )


def _seal_says_cast(suspect: Suspect) -> bool:
    """Whether the seal of the part, which knows the roundings of every byte, proves a cast."""
    part = suspect.watched.part
    if part is None or not part.sealed or part.undone:
        return False
    return any(c.kind == "cast" for c in part.changes_of(suspect.now))


def _find(
    evidences: Sequence[evidence.TensorEvidence], window: evidence.WindowEvidence
) -> list[finding.Cause]:
    """Causes; none where looking for them fails, since an alarm must not be lost for its reason."""
    try:
        return finding.find(evidences, window)
    except Exception:
        _log.debug("no cause was found", exc_info=True)
        return []


def _cause(suspect: Suspect, cause: finding.Cause | None) -> str:
    if suspect.kind == "missing":
        gone = "nothing hangs at its name any more"
        return gone if suspect.now is None else "its memory was freed or cut"
    if suspect.kind == "replaced":
        return "another object, equal bytes"
    if suspect.kind == "requires_grad":
        return "requires_grad was switched on again"
    if suspect.kind == "shape" and suspect.now is not None:
        return f"{suspect.reference.shape} -> {list(suspect.now.shape)}"
    return cause.text if cause is not None else "unknown"
