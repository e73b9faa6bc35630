"""Who gives the big batch's gradients and statistics from microbatches, and who recomputes them.

Everything is in float64 and compared with the slow obvious way: the real big batch, and one
training forward of the whole set.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.profiler import ProfilerActivity, profile

import frostline as fl
from frostline._batches import pieces
from tests.accumulation.approximations import RULES, Approximation, big_batch, one_forward
from tests.accumulation.approximations import precise_bn as precise
from tests.zoo import ZOO, Entry, classify
from tests.zoo_batches import labelled

FILE = Path(__file__).with_name("accumulation.json")
LIBRARIES = ("torch", "timm")
WINDOW, COUNTS = 64, (4, 16)
SET = 66  # the last two are outliers

Batch = tuple[Tensor, Tensor]
Figures = dict[str, float]
Record = dict[str, Any]


def _mobilenetv3() -> nn.Module:
    import timm  # as in the zoo, but without stochastic depth, which would draw other masks

    return timm.create_model("mobilenetv3_small_050", num_classes=5)


def _with(make: Callable[[], nn.Module], *shape: int) -> Entry:
    return Entry(make, labelled(WINDOW, *shape), classify, "", "")


MODELS: dict[str, Entry] = {
    "ResNet-18": _with(ZOO["resnet18"].make, 3, 32, 32),
    "MobileNetV3": _with(_mobilenetv3, 3, 32, 32),
    "MLP": _with(ZOO["mlp_bn1d"].make, 12),
}


# --- accumulation ------------------------------------------------------------------------------


def _ours(batchnorm: str, offload: str | None = None) -> Approximation:
    return partial(_accumulated, batchnorm, offload)


def _accumulated(batchnorm: str, offload: str | None, *window: Any) -> Tensor:
    return fl.accumulate(*window, batchnorm=batchnorm, offload=offload)


def _permuted(model: nn.Module, compute_loss: Any, microbatches: Any) -> Tensor:
    """The big batch in another order: how far the truth is from itself."""
    order = torch.randperm(WINDOW, generator=torch.Generator().manual_seed(3))
    whole = [torch.cat(parts)[order] for parts in zip(*microbatches, strict=True)]
    return big_batch(model, compute_loss, [tuple(whole)])


WAYS: dict[str, Approximation] = {
    "plain": RULES["plain"],
    "compensated": _ours("compensated"),
    "deferred": _ours("deferred"),
    "torchgpipe's rule": RULES["torchgpipe"],
    "CmBN-like": RULES["cmbn"],
    "window statistics as constants": RULES["window constants"],
    "exact": _ours("exact"),
    "exact, windowed": _ours("exact", "disk"),
    "big batch": big_batch,
    "big batch, permuted": _permuted,
}


class Window:
    """A model after a window: its gradients, its buffers and the loss."""

    def __init__(self, model: nn.Module, way: Approximation, batch: Batch, count: int) -> None:
        self._model = copy.deepcopy(model)
        self._run = partial(way, self._model, classify, pieces(batch, count))
        start = time.perf_counter()
        self.loss = self._run()
        self.seconds = time.perf_counter() - start
        self.gradient = torch.cat([p.grad.flatten() for p in self._model.parameters()])
        self.buffers = {name: b.clone() for name, b in self._model.named_buffers()}

    def peak(self) -> int:
        """The most bytes that tensors take in another run, more than before it."""
        for _ in range(5):
            peak = self._profiled()
            if peak >= self.gradient.nbytes:
                return peak
        raise RuntimeError("torch's profiler did not see the allocations, five times")

    def _profiled(self) -> int:
        """As :meth:`peak`; now and then the profiler drops what it has seen."""
        self._model.zero_grad()
        cpu = [ProfilerActivity.CPU]
        with _quiet(), profile(activities=cpu, profile_memory=True) as found:
            self._run()
        events = found.profiler.kineto_results.events()
        steps = [event.nbytes() for event in events if event.name() == "[memory]"]
        return max(torch.tensor([0, *steps]).cumsum(0).tolist())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that torch's profiler writes to the process's stderr."""
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def distances(ours: Window, truth: Window) -> Figures:
    """How far a window is from the truth; statistics in the worst channel."""
    loss, gradient = ours.loss - truth.loss, ours.gradient - truth.gradient
    return {
        "gradient": float(gradient.norm() / truth.gradient.norm()),
        "cosine": float(torch.cosine_similarity(ours.gradient, truth.gradient, dim=0)),
        "loss": float(loss.abs() / truth.loss.abs()),
        **statistics_apart(ours.buffers, truth.buffers),
    }


def statistics_apart(ours: dict[str, Tensor], truth: dict[str, Tensor]) -> Figures:
    """Means in standard deviations, variances as a share; of the worst channel of all norms."""
    means, variances = [], []
    for name, variance in truth.items():
        if name.endswith("running_var"):
            mean = name.removesuffix("running_var") + "running_mean"
            means.append(((ours[mean] - truth[mean]).abs() / variance.sqrt()).max())
            variances.append(((ours[name] - variance).abs() / variance).max())
    return {
        "mean": float(torch.stack(means).max()),
        "variance": float(torch.stack(variances).max()),
    }


def built(name: str) -> tuple[nn.Module, Batch]:
    inputs, labels = MODELS[name].batch()
    return MODELS[name].build().double(), (inputs.double(), labels)


def accumulation(name: str, count: int) -> dict[str, Figures]:
    """All ways on one model: distances, seconds, bytes."""
    model, batch = built(name)
    truth = Window(model, big_batch, batch, count)
    found = {}
    for way, run in WAYS.items():
        first, window = (Window(model, run, batch, count) for _ in range(2))
        seconds = min(first.seconds, window.seconds)
        found[way] = distances(window, truth) | {"seconds": seconds, "peak": window.peak()}
    return found


# --- recalibration -----------------------------------------------------------------------------


def _recalibrated(method: Any) -> Callable[[nn.Module, list[Tensor]], Any]:
    return lambda model, batches: fl.recalibrate(model, batches, method=method)


TOOLS: dict[str, Callable[[nn.Module, list[Tensor]], Any]] = {
    "`update_bn` of torch": lambda model, batches: update_bn(batches, model),
    "PreciseBN's rule (fvcore)": precise,
    "`recalibrate`, merged": _recalibrated("merged"),
    "`recalibrate`, layerwise": _recalibrated("layerwise"),
}
SPLITS: dict[str, list[int]] = {
    "one of 66": [66],
    "64 and 2": [64, 2],
    "8 of 8, then 2": [8] * 8 + [2],
    "33 of 2": [2] * 33,
}


def recalibration(name: str) -> dict[str, dict[str, Figures]]:
    """All tools on one model and all splits of one set."""
    model, inputs = built(name)[0], with_outliers(name)
    truth = copy.deepcopy(model)
    one_forward(truth, [inputs])
    found: dict[str, dict[str, Figures]] = {split: {} for split in SPLITS}
    for split, sizes in SPLITS.items():
        for tool, run in TOOLS.items():
            ours = copy.deepcopy(model)
            run(ours, list(inputs.split(sizes)))
            buffers = dict(ours.named_buffers()), dict(truth.named_buffers())
            found[split][tool] = statistics_apart(*buffers)
    return found


def with_outliers(name: str) -> Tensor:
    """The inputs of the window and two far from them, which come last."""
    inputs = built(name)[1][0]
    return torch.cat([inputs, 5 * inputs[: SET - WINDOW] + 3])


# --- kept --------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    return {name: version(name).partition("+")[0] for name in LIBRARIES}


def write() -> None:
    record: Record = {"versions": versions(), "accumulation": {}, "recalibration": {}}
    for name in MODELS:
        print(name, flush=True)  # noqa: T201
        record["accumulation"][name] = {str(k): accumulation(name, k) for k in COUNTS}
        record["recalibration"][name] = recalibration(name)
    FILE.write_text(json.dumps(record, indent=1) + "\n")


def read() -> Record:
    return json.loads(FILE.read_text())
