"""From suspects to changes: how much, since when, why, and which line."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import is_

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline._results import Change
from frostline.guarding import causes, evidence
from frostline.guarding.engine import Engine, Suspect
from frostline.guarding.sizing import Size, size
from frostline.guarding.target import Watched
from frostline.guarding.witness import Witness


class Explaining:
    """Gathers evidence between two looks, and explains what the second one found."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._window = evidence.WindowEvidence(models=engine.target.models)
        self._tensors: list[Watched] = []
        self._frozen: dict[str, Tensor] = {}

    def forget(self) -> None:
        """A look is over: what comes is evidence for the next one."""
        self._window = evidence.WindowEvidence(models=self._engine.target.models)
        self._engine.identity.versions_moved()

    # --- evidence -------------------------------------------------------------------------

    def before_step(self, optimizer: Optimizer) -> None:
        """Note what the optimizer has of the frozen tensors."""
        tensors = self._engine.target.tensors
        if len(tensors) != len(self._tensors) or not all(map(is_, tensors, self._tensors)):
            self._tensors = list(tensors)
            self._frozen = {w.name: w.tensor for w in tensors}
        self._window.steps.append(evidence.before_step(optimizer, self._frozen))

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
        since: Callable[[str], int],
        step: int,
        witness: Witness,
    ) -> list[Change]:
        """One change for each suspect, drift first."""
        if not suspects:
            return []
        moved = self._engine.identity.versions_moved()
        altered = [s for s in suspects if s.kind in ("value", "dtype")]
        found = causes.find([self._evidence(s, moved) for s in altered], self._window)
        by_name = {name: cause for cause in found for name in cause.names}
        changes = [
            self._change(s, by_name.get(s.watched.name), since(s.tier), step, witness)
            for s in suspects
        ]
        return sorted(changes, key=lambda change: change.severity != "drift")

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
        cause: causes.Cause | None,
        since: int,
        step: int,
        witness: Witness,
    ) -> Change:
        measured = size(suspect.reference, suspect.now) if suspect.kind == "value" else Size()
        culprit = witness.culprit(suspect.watched.name)
        is_cast = cause is not None and cause.kind == "cast"
        harmless = suspect.kind == "replaced" or (cause is not None and cause.severity == "report")
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


def _cause(suspect: Suspect, cause: causes.Cause | None) -> str:
    if suspect.kind == "missing":
        return "nothing hangs at its name any more"
    if suspect.kind == "replaced":
        return "another object, equal bytes"
    if suspect.kind == "requires_grad":
        return "requires_grad was switched on again"
    if suspect.kind == "shape" and suspect.now is not None:
        return f"{suspect.reference.shape} -> {list(suspect.now.shape)}"
    return cause.text if cause is not None else "unknown"
