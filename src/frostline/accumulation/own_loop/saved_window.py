"""An open window in a checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from frostline.accumulation.own_loop.open_window import OpenWindow
from frostline.accumulation.own_loop.window_gradients import Gradients
from frostline.errors import AccumulationError

VERSION = 1


def saved(window: OpenWindow, *, gradients: bool) -> dict[str, Any]:
    """Plain types and tensors that say how far the window is.

    Raises:
        AccumulationError: ``gradients`` of an open window under FSDP2.
    """
    state: dict[str, Any] = {
        "version": VERSION,
        "microbatches": window.count,
        "steps": window.steps,
        "skipped": window.skipped,
        "items": list(window.items),
        "losses": [loss.item() for loss in window.losses],
        "reference": window.reference,
        "statistics": window.statistics.state_dict(),
        "gradients": None,
    }
    if gradients and window.items:
        window.ranks.refuse_sharded("saved with its gradients")
        state["gradients"] = {
            "before": list(map(_copy, window.gradients.before)),
            "window": list(map(_copy, window.gradients.now)),
        }
    return state


def restored(window: OpenWindow, state: dict[str, Any]) -> None:
    """Make the window what it was.

    Raises:
        AccumulationError: the state is of something else, or of other microbatches or parameters.
    """
    leaves = window.gradients.find()
    _check(window, state, leaves)
    window.discard()
    window.steps, window.skipped = state["steps"], state["skipped"]
    window.statistics.load_state_dict(state["statistics"])
    found = state["gradients"]
    if found is None:
        window.statistics.discard()
        return
    window.gradients.put(_placed(found["before"], leaves))
    window.open()
    window.gradients.put(_placed(found["window"], leaves))
    # A scaler makes its scale at the first loss, which may have been before the checkpoint.
    window.stepping.scaled(leaves[0].new_zeros(()))
    window.items, window.reference = list(state["items"]), state["reference"]
    window.losses = [torch.tensor(loss, dtype=torch.float64) for loss in state["losses"]]


def _check(window: OpenWindow, state: Any, leaves: list[Tensor]) -> None:
    version = state.get("version") if isinstance(state, dict) else type(state).__name__
    if version != VERSION:
        raise AccumulationError(
            f"expected what acc.state_dict() returns, version {VERSION}; got {version}"
        )
    found = state["gradients"]
    if found is None:
        return
    if state["microbatches"] != window.count:
        raise AccumulationError(
            f"the saved window is one of {state['microbatches']} microbatches, and this "
            f"Accumulator has {window.count}; its gradients are weighed for the other"
        )
    if not all(_fit(gradients, leaves) for gradients in found.values()):
        raise AccumulationError(
            "the saved gradients are of other parameters than those of this model and optimizer; "
            "build both as they were when the window was saved"
        )


def _fit(gradients: Gradients, leaves: list[Tensor]) -> bool:
    return len(gradients) == len(leaves) and all(
        gradient is None or gradient.shape == leaf.shape
        for gradient, leaf in zip(gradients, leaves, strict=True)
    )


def _copy(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.detach().clone()


def _placed(gradients: Gradients, leaves: list[Tensor]) -> Gradients:
    return [
        None if gradient is None else gradient.to(leaf.device, copy=True)
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]
