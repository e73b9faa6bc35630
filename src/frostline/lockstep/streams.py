"""A stream of random numbers for each run, so that the order of the switches does not matter."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

Stream = tuple[Tensor, list[Tensor]]


def streams(count: int, start: Stream) -> list[Stream]:
    """States of the global generators, CPU and CUDA: ``start`` for the first run, its own each.

    They are derived from ``start`` and draw nothing from it, so a model without randomness leaves
    the generators as they were, and a single run draws what it would without us.
    """
    digest = blake2b(start[0].numpy().tobytes(), digest_size=8)
    return [start] + [_seeded(digest.digest(), k, start) for k in range(1, count)]


def _seeded(digest: bytes, run: int, start: Stream) -> Stream:
    seed = int.from_bytes(blake2b(digest + run.to_bytes(8, "big"), digest_size=8).digest(), "big")
    devices = [f"cuda:{i}" for i in range(len(start[1]))]
    states = [_state(seed >> 1, device) for device in ("cpu", *devices)]
    return states[0], states[1:]


def _state(seed: int, device: str) -> Tensor:
    return torch.Generator(device).manual_seed(seed).get_state()
