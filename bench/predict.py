"""Which buffers a forward writes: by ``torch.export``, and by a run without memory that is watched.

    python bench/predict.py [NAME ...]

For each model of the zoo: seconds of processor time of both ways, and whether each names exactly
the buffers that a real forward in training mode changes. ``export`` is taken before and after
``run_decompositions()``; what it cannot export is said so. It says nothing of parameters: an
optimizer's step is no part of it.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from frostline.auditing.predicting import NotPredictable, predict
from tests import _torchvision
from tests.auditing.predicting.writers import WRITERS, batch, built
from tests.zoo import BREADTH, ZOO, Entry, fresh, seeded

NAMES = (
    "two_branches", "instance_norm", "resnet18", "mobilenetv3", "levit", "hf_resnet", "bert",
    "wav2vec2", "densenet", "hf_levit", "queue", "counter and average", "codebook", "checkpoint",
    "data swapped",
)  # fmt: skip
Found = set[str] | str


def case(name: str) -> tuple[nn.Module, Any, Any]:
    """A model in training mode, its batch and its loss."""
    if name in WRITERS:
        return built(name), batch(), lambda model, inputs: model(inputs).square().sum()
    entry: Entry = {**ZOO, **BREADTH}[name]
    return fresh(entry).train(), entry.batch(), entry.loss


def exported(name: str, *, decomposed: bool) -> Found:
    model, inputs, _ = case(name)
    given = dict(inputs) if hasattr(inputs, "items") else {}
    args = () if given else (inputs[0],) if isinstance(inputs, tuple | list) else (inputs,)
    program = torch.export.export(model, args, given, strict=False)
    if decomposed:
        program = program.run_decompositions()
    return set(program.graph_signature.buffers_to_mutate.values())


def watched(name: str) -> Found:
    model, inputs, loss = case(name)
    try:
        step = predict(model, None, inputs, loss, train=False)
    except NotPredictable as why:
        return str(why)
    told = step.changed | set(step.undecided)
    return {n for n, buffer in model.named_buffers() if id(buffer) in told}


def real(name: str) -> set[str]:
    model, inputs, loss = case(name)
    before = {n: buffer.clone() for n, buffer in model.named_buffers()}
    with seeded(1):
        loss(model, inputs).backward()
    return {n for n, b in model.named_buffers() if not torch.equal(b, before[n])}


def timed(way: Callable[[], Found]) -> tuple[Found, float]:
    start = time.process_time()
    try:
        found = way()
    except Exception as error:
        found = type(error).__name__
    return found, time.process_time() - start


def told(found: Found, true: set[str]) -> str:
    if isinstance(found, str):
        return found[:28]
    return (
        "right"
        if found == true
        else f"{len(found & true)} of {len(true)}, {len(found - true)} more"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    _torchvision.install()
    warnings.simplefilter("ignore")
    print(f"{'':20} {'export':>20} {'decomposed':>20} {'':>6} {'watched':>20}")
    for name in parser.parse_args().names:
        case(name)  # built once, before anything is timed
        true = real(name)
        plain, _ = timed(lambda name=name: exported(name, decomposed=False))
        full, slow = timed(lambda name=name: exported(name, decomposed=True))
        ours, fast = timed(lambda name=name: watched(name))
        print(
            f"{name:20} {told(plain, true):>20.20} {told(full, true):>20.20} {slow:5.1f}s "
            f"{told(ours, true):>20.20} {fast:5.1f}s",
            flush=True,
        )


if __name__ == "__main__":
    main()
