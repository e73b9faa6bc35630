"""From a model and a batch to a :class:`Coupling`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import nn

from frostline._calling import how_called
from frostline._names import named_modules
from frostline.behaviours import behaviour
from frostline.errors import AccumulationError
from frostline.freezing.planning import unwrapped
from frostline.probing.arguments import failing, microbatches_of
from frostline.probing.naming import couplers
from frostline.probing.outside import modules_beside
from frostline.probing.probe import Found, look
from frostline.probing.putting_back import put_back
from frostline.probing.result import Coupling
from frostline.probing.running import Loss, running
from frostline.probing.samples import taken_from

_MOST = 4  # samples; with two, a norm of one value per channel gives 1 and -1 whatever they are


def make(model: nn.Module, batch: Any, compute_loss: Loss | None) -> Coupling:
    """Run the probes and say what they found."""
    model = unwrapped(model)
    microbatches = microbatches_of(batch)
    run = running(model, compute_loss)
    beside = () if compute_loss is None else modules_beside(model, compute_loss)
    with failing(microbatches[0], compute_loss), put_back([model, *beside]):
        samples = taken_from(microbatches, _MOST)
        probe, found = look(model, run, samples, beside=beside)
        remembering = probe.remembering()
        joined = found
        if found.mixes:
            with suppress(AccumulationError):  # a norm that is called where it cannot be joined
                _, joined = look(model, run, probe.samples, beside=beside, joined=True)
    return Coupling(
        model=type(model).__name__,
        modules=len(named_modules(model)),
        samples=samples.count,
        called=how_called(microbatches[0])
        if compute_loss is None
        else "compute_loss(model, batch)",
        couplers=tuple(
            couplers(model, found, joined, remembering, judged=compute_loss is not None)
        ),
        reduction=None if compute_loss is None else probe.reduction(),
        undecided=tuple(_undecided(found, judged=compute_loss is not None)),
        random=sum(map(_draws, model.modules())),
    )


def _undecided(found: Found, *, judged: bool) -> Iterator[str]:
    if not found.moved:
        yield (
            "nothing in the model moved when half of the samples were replaced: are they alike? "
            "Pass real samples"
        )
    if found.nan:
        yield "the output or the loss held NaN, with which nothing can be compared"
    if judged:
        return
    if not found.compared:
        yield "the model returned no tensor that could be compared; pass compute_loss"
    elif found.untold:
        yield "the samples in the model's output could not be told apart; pass compute_loss"
    if found.total and not found.mixed:
        yield (
            "an output without a dimension for samples is no sum over them; whether that matters "
            "depends on what the loss does with it: pass compute_loss"
        )


def _draws(module: nn.Module) -> bool:
    doing = behaviour(module)
    return doing is not None and doing.now.random
