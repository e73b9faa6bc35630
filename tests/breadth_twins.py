"""Frozen by the flag alone: which tensors of a backbone change all the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from frostline.selection import select
from tests.freezing.content import Content, raw
from tests.zoo import Entry, fresh, seeded


def backbone_tensors(model: nn.Module, entry: Entry) -> dict[str, Tensor]:
    """Full name to tensor for all that the backbone holds, non-persistent buffers too."""
    return {found.name: found.tensor for found in select(model, entry.backbone).tensors}


def content(tensors: Mapping[str, Tensor]) -> Content:
    """Dtype, shape and bytes by name: a copy, which no later write reaches."""
    return {name: raw(tensor) for name, tensor in tensors.items()}


def take_steps(model: nn.Module, entry: Entry, count: int) -> None:
    """Train whatever is trainable: real steps in training mode over all parameters, with decay."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    with seeded(3):
        for _ in range(count):
            model.train()
            optimizer.zero_grad()
            entry.loss(model, entry.batch()).backward()
            optimizer.step()


def flag_only_twin(entry: Entry) -> nn.Module:
    """The model with `requires_grad=False` on its backbone, and nothing that holds it."""
    model = fresh(entry)
    for tensor in backbone_tensors(model, entry).values():
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(False)
    return model


def changed_by_flag_only(entry: Entry) -> set[str]:
    """Full names of the backbone's tensors that one training step of the twin changed."""
    twin = flag_only_twin(entry)
    before = content(backbone_tensors(twin, entry))
    take_steps(twin, entry, 1)
    after = content(backbone_tensors(twin, entry))
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
