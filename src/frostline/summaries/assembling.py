"""A summary from its parts: the tree, the leaks, and what a step will cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from frostline._names import NamedTensor, Places, places
from frostline._results import plural
from frostline._state import collector_paused, restoring
from frostline.behaviours.leaking import looks_frozen
from frostline.summaries import activations, leaking, optimizer_state, tree
from frostline.summaries.activations import Saved
from frostline.summaries.footprint import Footprint
from frostline.summaries.optimizer_state import State
from frostline.summaries.result import Summary
from frostline.summaries.rows import rows


def make(model: nn.Module, optimizer: Optimizer | None, batch: Any) -> Summary:
    """The summary of ``model``, which is left as it is.

    Raises:
        BatchError: the model cannot be run on ``batch``.
    """
    everything = places(model)
    kept = None
    if batch is not None and not _lazy(everything):
        kept = activations.saved(model, batch)
    with collector_paused():
        return _put_together(model, everything, optimizer, batch, kept)


def _put_together(
    model: nn.Module,
    everything: Places,
    optimizer: Optimizer | None,
    batch: Any,
    kept: Saved | None,
) -> Summary:
    footprint = Footprint(tree.measurable(everything))
    nodes = tree.grow(model, everything, footprint)
    total = tree.sizes(nodes[0], footprint)
    frozen = looks_frozen(model)
    leaks = leaking.find(model, everything, frozen, optimizer)
    trainable = [e for e in _parameters(everything) if e.tensor.requires_grad]
    state = _state(model, optimizer, [*trainable, *leaking.stale(everything, optimizer)])
    estimates = optimizer_state.estimates(_tensors(trainable)) if optimizer is None else {}
    return Summary(
        model=nodes[0].type,
        modules=len(nodes),
        parameters=total.parameters.elements,
        trainable=total.trainable.elements,
        frozen=total.frozen.elements,
        buffers=total.buffers.elements,
        parameter_bytes=total.parameters.bytes,
        trainable_bytes=total.trainable.bytes,
        frozen_bytes=total.frozen.bytes,
        buffer_bytes=total.buffers.bytes,
        gradient_bytes=sum(_gradient(e.tensor, footprint) for e in trainable),
        optimizer=type(optimizer).__name__ if optimizer is not None else None,
        optimizer_bytes=state.bytes,
        optimizer_how=state.how,
        optimizer_estimates=estimates,
        activation_bytes=kept.bytes if kept is not None else None,
        activation_how=kept.how if kept is not None else None,
        activation_of=kept.of if kept is not None else "",
        leaky=list(dict.fromkeys(name for leak in leaks for name in leak.names)),
        rows=tuple(rows(nodes, footprint, frozen, leaks)),
        lazy=tuple(_lazy(everything)),
        notes=(*state.notes, *_notes(model, _lazy(everything), batch, kept)),
    )


def _lazy(everything: Places) -> list[str]:
    """Names of tensors that get a shape by the first forward."""
    return [entry.name for entry in everything.tensors if is_lazy(entry.tensor)]


def _parameters(everything: Places) -> Iterable[NamedTensor]:
    """Each parameter that has a shape, once."""
    return {
        id(e.tensor): e
        for e in everything.tensors
        if e.kind == "parameter" and not is_lazy(e.tensor)
    }.values()


def _tensors(entries: Iterable[NamedTensor]) -> list[Tensor]:
    return [entry.tensor for entry in entries]


def _state(model: nn.Module, optimizer: Optimizer | None, moving: Iterable[NamedTensor]) -> State:
    if optimizer is None:
        return State(None, "unknown")
    # A custom optimizer may draw random numbers.
    with restoring(model, values=False):
        return optimizer_state.state_of(optimizer, model, _tensors(moving))


def _gradient(parameter: Tensor, footprint: Footprint) -> int:
    windows = footprint.of[id(parameter)]
    if len(windows) == 1:
        return parameter.numel() * parameter.element_size()
    return sum(window.size.bytes for window in windows)


def _notes(model: nn.Module, lazy: list[str], batch: Any, kept: Saved | None) -> Iterator[str]:
    if lazy:
        which = plural(len(lazy), "tensor")
        yield f"{which} without a shape before the first forward, not counted: first {lazy[0]}"
    if lazy and batch is not None:
        yield "not run on the batch for that reason: call the model once, then ask again"
    sparse = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    if any(m.sparse and m.weight.requires_grad for m in sparse):
        yield "sparse gradients take what the batch looks up; here they count as dense, the most"
    yield from kept.notes if kept is not None else ()
