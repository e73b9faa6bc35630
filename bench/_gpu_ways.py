"""Ways to the gradients of a window on a GPU, their time and memory, and what they leave behind.

The batch lies in the host's memory and `compute_loss` moves what it gets, so that no way holds the
images of the whole window on the device but those that need them there.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.nn import functional as F

import frostline as fl
from frostline.accumulation import plan

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench._accumulate_models import Batch
from bench._fresh import Sample
from tests.accumulation.exact.truth import Outcome, outcome


@dataclass(frozen=True)
class Window:
    """A model on a device, and the batch of a window in the host's memory.

    Attributes:
        model: in training mode.
        batch: images and labels.
        microbatch: samples of one.
    """

    model: nn.Module
    batch: Batch
    microbatch: int

    @property
    def parts(self) -> list[Batch]:
        return fl.split(self.batch, size=self.microbatch)


Run = Callable[[Window], Tensor]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean over the images, which come to where the model is."""
    device = next(model.parameters()).device
    images, labels = (tensor.to(device) for tensor in batch)
    return F.cross_entropy(model(images), labels)


def plain(window: Window) -> Tensor:
    """Gradient accumulation as everyone writes it: not the big batch's gradients."""
    losses = []
    for part in window.parts:
        loss = loss_of(window.model, part) * (len(part[0]) / len(window.batch[0]))
        loss.backward()
        losses.append(loss.detach())
    return torch.stack(losses).sum()


def big_batch(window: Window) -> Tensor:
    loss = loss_of(window.model, window.batch)
    loss.backward()
    return loss.detach()


def saved_on_cpu(*, pinned: bool) -> Run:
    def run(window: Window) -> Tensor:
        with save_on_cpu(pin_memory=pinned):
            loss = loss_of(window.model, window.batch)
        loss.backward()
        return loss.detach()

    return run


def exact(offload: str | None, memory: float | None = None) -> Run:
    def run(window: Window) -> Tensor:
        return fl.accumulate(window.model, loss_of, window.parts, offload=offload, memory=memory)

    return run


def chosen(window: Window, memory: float | None) -> str:
    """Which way ``auto`` takes, by name."""
    return plan(window.model, loss_of, window.parts, memory=memory).chosen.name


def bytes_on_cpu(window: Window, *, pinned: bool) -> int:
    """What `save_on_cpu` keeps of the whole window, from one microbatch.

    It copies each saved tensor, also where several are the same; pinned blocks are powers of two.
    """
    times = len(window.batch[0]) / window.microbatch
    kept = 0

    def note(tensor: Tensor) -> Tensor:
        nonlocal kept
        is_weight = isinstance(tensor, nn.Parameter)
        nbytes = int(tensor.nbytes * (1 if is_weight else times))
        kept += 1 << (nbytes - 1).bit_length() if pinned and nbytes else nbytes
        return tensor

    state = {name: value.clone() for name, value in window.model.state_dict().items()}
    with saved_tensors_hooks(note, lambda tensor: tensor):
        loss_of(window.model, window.parts[0])
    window.model.load_state_dict(state)
    return kept


def timed(run: Run, window: Window) -> tuple[Tensor, Sample]:
    """The loss; seconds, and bytes on the device: before, the peak over that, and reserved."""
    torch.cuda.synchronize()
    start = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.reset_peak_host_memory_stats()
    began = time.perf_counter()
    loss = run(window)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    return loss, {
        "seconds": seconds,
        "start": start,
        "peak": torch.cuda.max_memory_allocated() - start,
        "reserved": torch.cuda.max_memory_reserved(),
        "pinned": torch.cuda.host_memory_stats().get("allocated_bytes.peak", 0),
    }


def empty_caches() -> None:
    """What torch keeps of freed memory, on the device and pinned on the host, is given back."""
    gc.collect()
    torch.cuda.empty_cache()
    torch._C._host_emptyCache()


def left_behind(model: nn.Module, loss: Tensor) -> Outcome:
    """Loss, gradients and statistics, in the host's memory."""
    found = outcome(model, loss, [])
    pairs = {name: (a.cpu(), b.cpu()) for name, (a, b) in found.statistics.items()}
    gradients, buffers = (
        {name: value.cpu() for name, value in of.items()} for of in (found.gradients, found.buffers)
    )
    return Outcome(found.loss.cpu(), gradients, pairs, buffers)
