"""What one forward keeps alive for backward, by a run without memory or, failing that, a real one.

A run under ``FakeTensorMode`` computes shapes only. Of all storages that its operations made,
those are counted that go when the loss goes: the graph behind the loss held them.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from frostline._batches import tensors_in
from frostline._calling import call, failing_call, how_called
from frostline.behaviours.untouched import untouched
from frostline.freezing.planning import unwrapped
from frostline.freezing.printing import human
from frostline.summaries.births import Births
from frostline.summaries.shapes_only import not_logged, shapes_only

How = Literal["predicted", "measured"]


@dataclass(frozen=True)
class Saved:
    """Activations saved for backward.

    Attributes:
        bytes: how many.
        how: predicted, or measured by a run.
        of: what was called and what is kept of it.
        notes: what else came to light.
    """

    bytes: int
    how: How
    of: str
    notes: tuple[str, ...] = ()


def saved(model: nn.Module, batch: Any) -> Saved:
    """Run the model on ``batch`` in the modes that it is in, and count what stays for backward.

    Raises:
        BatchError: the model cannot be run on ``batch``.
    """
    model = unwrapped(model)
    try:
        with not_logged():
            return _run(model, batch, "predicted")
    except Exception:
        # Either the code asks for a value, which a fake tensor has not, or the batch does not fit.
        with failing_call(batch):
            return _run(model, batch, "measured")


def _run(model: nn.Module, batch: Any, how: How) -> Saved:
    memory = shapes_only() if how == "predicted" else nullcontext()
    with untouched(model, batch, values=how == "measured"), memory as fake:
        births = Births(fake)
        with births:
            kept, of = _kept(call(model, batch))
    # What a module remembers of the run is forgotten by now; what stays is held by `kept`.
    with_loss = births.alive()
    kept.clear()
    without = births.alive()
    if without:
        gc.collect()
        without = births.alive()
    notes = (_left(without, how),) if without else ()
    return Saved(with_loss - without, how, f"{how_called(batch)}, keeping {of}", notes)


def _kept(output: Any) -> tuple[list[Tensor], str]:
    """What a training loop keeps of an output, and its name."""
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(loss, Tensor) and _counts(loss):
        return [loss], "its loss"
    return [t.sum() for t in tensors_in(output) if _counts(t)], "the sum of its output"


def _counts(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _left(nbytes: int, how: How) -> str:
    note = f"the forward left {human(nbytes)}B in an object outside of the model, a cache perhaps"
    if how == "predicted":
        note += "; its tensors are without memory, so empty it before you train"
    return note
