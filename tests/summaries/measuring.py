"""What a training step really takes, by torch's profiler and by the tensors that are there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

import frostline as fl
from frostline.selection import select
from tests.zoo import Entry, seeded


def flag(model: nn.Module, backbone: str) -> None:
    """Freeze by flags alone."""
    for entry in select(model, backbone).tensors:
        if entry.kind == "parameter":
            entry.tensor.requires_grad_(False)


def build(entry: Entry, how: str) -> nn.Module:
    """A model of the zoo, trainable, or with its backbone frozen by flags or by a hold."""
    model = entry.build()
    if how == "flags":
        flag(model, entry.backbone)
    elif how == "held":
        fl.freeze(model, entry.backbone)
    return model


def run(model: nn.Module, batch: Any) -> Tensor:
    """The loss that the model computes itself, or the sum of what it gives."""
    output = model(**batch) if hasattr(batch, "keys") else model(batch[0])
    loss = getattr(output, "loss", None)
    if loss is None:
        loss = sum(t.sum() for t in tree_leaves(output) if t.is_floating_point())
    return loss


def activations(model: nn.Module, batch: Any) -> int:
    """Bytes that are freed when the loss of a forward goes, as the allocator reports them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True):  # it learns addresses
        loss = run(model, batch)
    torch.clear_autocast_cache()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        del loss
    return -sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def unique(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind these."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def gradients(model: nn.Module) -> int:
    return unique(p.grad for p in model.parameters() if p.grad is not None)


def state(optimizer: Optimizer) -> int:
    """Bytes of the tensors in an optimizer's state."""
    return unique(_tensors(list(optimizer.state.values())))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    for inner in value.values() if isinstance(value, dict) else ():
        yield from _tensors(inner)
    for inner in value if isinstance(value, list | tuple) else ():
        yield from _tensors(inner)


def step(entry: Entry, model: nn.Module, optimizer: Optimizer) -> None:
    """One training step as people write it."""
    model.train()
    with seeded(3):
        entry.loss(model, entry.batch()).backward()
    optimizer.step()


def contents(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor.detach().clone() for name, tensor in named}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of parameters and buffers that are not as they were, bit for bit."""
    return {n for n, t in contents(model).items() if not torch.equal(t, before[n])}
