"""The inputs of the zoo's models: makers of batches, the same at every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.zoo_models import CLASSES, VOCABULARY


def labelled(*shape: int) -> Callable[[], tuple[Tensor, Tensor]]:
    """Inputs of `shape` (batch first) that are not standard normal, and class labels."""

    def batch() -> tuple[Tensor, Tensor]:
        draw = torch.Generator().manual_seed(11)
        inputs = torch.randn(shape, generator=draw) * 1.5 + 0.4
        return inputs, torch.randint(CLASSES, shape[:1], generator=draw)

    return batch


def images(name: str, size: int, count: int = 4) -> Callable[[], dict[str, Tensor]]:
    """Keyword inputs of a transformers classifier that takes float inputs called `name`."""
    shape = (count, size) if name == "input_values" else (count, 3, size, size)

    def batch() -> dict[str, Tensor]:
        inputs, labels = labelled(*shape)()
        return {name: inputs, "labels": labels}

    return batch


def tokens(*, sequence_labels: bool) -> Callable[[], dict[str, Tensor]]:
    """Token ids of 4 texts of 12 tokens; labels are the tokens themselves, or a class a text."""

    def batch() -> dict[str, Tensor]:
        draw = torch.Generator().manual_seed(12)
        ids = torch.randint(3, VOCABULARY, (4, 12), generator=draw)
        labels = torch.randint(CLASSES, (4,), generator=draw) if not sequence_labels else ids
        mask = torch.ones_like(ids)
        mask[0, 8:] = 0
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return batch


def speech() -> dict[str, Tensor]:
    """Features of 4 recordings, 8 bands by 40 frames, and their texts of 12 tokens."""
    draw = torch.Generator().manual_seed(13)
    features = torch.randn((4, 8, 40), generator=draw) * 1.5 + 0.4
    return {
        "input_features": features,
        "labels": torch.randint(3, VOCABULARY, (4, 12), generator=draw),
    }


def pairs() -> dict[str, Any]:
    """4 images with a text each, for a contrastive loss."""
    text = tokens(sequence_labels=True)()
    ids = text["input_ids"].clone()
    ids[0, 7] = ids[1:, -1] = VOCABULARY - 1  # where a text ends, it is read
    inputs, _ = labelled(4, 3, 32, 32)()
    return {
        "input_ids": ids,
        "attention_mask": text["attention_mask"],
        "pixel_values": inputs,
        "return_loss": True,
    }
