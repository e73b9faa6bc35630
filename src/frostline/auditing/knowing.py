"""The two steps that an audit asks about, by the best way that there is of knowing them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from frostline._names import Places
from frostline._state import collector_paused
from frostline.auditing.claim import Claim
from frostline.auditing.moving import Moving, moving
from frostline.auditing.reading import read
from frostline.auditing.step import Step
from frostline.auditing.subject import Facts

if TYPE_CHECKING:
    from frostline.auditing.probes import Probes

Way = Literal["read", "predicted", "measured"]


@dataclass(frozen=True, eq=False)
class Asked:
    """What ``audit`` was given, and how the step is to be known."""

    model: nn.Module
    optimizer: Optimizer | None
    batch: Any
    compute_loss: Callable[[nn.Module, Any], Tensor] | None
    way: Way


def steps(
    asked: Asked, claim: Claim, modules: list[Facts], everything: Places
) -> tuple[Step, Step, list[str]]:
    """The step in the modes of now, the step after ``model.train()``, and notes.

    Raises:
        BatchError: the model cannot be run on the batch.
    """
    same = all(facts.training == facts.after_train for facts in modules)
    if asked.way != "read":
        run = _measure if asked.way == "measured" else _predict
        now, why = run(asked, train=False)
        if now is not None:
            after, why = (now, "") if same else run(asked, train=True)
            if after is not None:
                return now, after, []
        return *_unsure(asked, claim, modules, everything, same), [why]
    with collector_paused():
        moved = moving(asked.optimizer, claim, everything)
        return *_read(modules, moved, same), []


def _read(modules: list[Facts], moved: Moving, same: bool) -> tuple[Step, Step]:
    now = read(modules, training=False, moved=moved.sure, undecided=moved.undecided)
    if same:
        return now, now
    return now, read(modules, training=True, moved=moved.sure, undecided=moved.undecided)


def _unsure(
    asked: Asked, claim: Claim, modules: list[Facts], everything: Places, same: bool
) -> tuple[Step, Step]:
    """What was read, all of it undecided: who knows which modules the forward runs."""
    moved = moving(asked.optimizer, claim, everything)
    now, after = (
        Step("predicted", undecided={**dict.fromkeys(step.changed, "could not be predicted"),
                                     **step.undecided})
        for step in _read(modules, moved, same)
    )  # fmt: skip
    return now, now if same else after


def _measure(asked: Asked, *, train: bool) -> tuple[Step | None, str]:
    from frostline.auditing.measuring import measure

    found = measure(asked.model, asked.optimizer, asked.batch, asked.compute_loss, train=train)
    return found, ""


def _predict(asked: Asked, *, train: bool) -> tuple[Step | None, str]:
    from frostline.auditing.predicting import NotPredictable, predict

    try:
        found = predict(asked.model, asked.optimizer, asked.batch, asked.compute_loss, train=train)
    except NotPredictable as reason:
        return None, f"the step could not be predicted: {reason}"
    return found, ""


def probes(asked: Asked, claim: Claim, modules: list[Facts], now: Step) -> Probes | None:
    """What runs of the frozen part show; None without a real batch, or with nothing frozen."""
    if asked.way != "measured" or not claim.tensors:
        return None
    from frostline.auditing.probes import probe

    return probe(asked.model, modules, asked.batch, asked.compute_loss, now.changed)
