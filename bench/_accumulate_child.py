"""One sample of bench/accumulate.py, in a process of its own; its argument is JSON.

Two windows are run, each without gradients at its start. Time is that of the second, since kernels
are chosen for each shape at the first; memory that of the first, after a microbatch, since what is
found out once about a model takes memory too. Both are kept of both.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from bench._accumulate_models import SUBJECTS
from bench._accumulate_ways import Run, Window, plain, ways
from bench._fresh import Sample, measured


def sample(run: Run, window: Window, kind: str) -> Sample:
    if kind == "memory":
        plain(Window(window.model, window.microbatches[0]))
    both = []
    for _ in range(2):
        window.model.zero_grad()
        loss, found = measured(lambda: run(window))
        both.append(found)
    meant, other = both[::-1] if kind == "time" else both
    gradients = [p.grad for p in window.model.parameters() if p.grad is not None]
    norm = torch.stack([g.double().norm() for g in gradients]).norm()
    return {
        **meant,
        "other_window": other,
        "gradients": sum(g.nbytes for g in gradients),
        "loss": loss.item(),
        "gradient_norm": norm.item(),
    }


class _Sayings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def main() -> None:
    wanted = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    subject, sayings = SUBJECTS[wanted["model"]], _Sayings()
    logging.getLogger("frostline").addHandler(sayings)
    logging.getLogger("frostline").setLevel(logging.INFO)
    window = Window(subject.build(), subject.batch(wanted["window"]))
    run = ways(subject)[wanted["way"]]
    with warnings.catch_warnings(record=True) as warned:
        found = sample(run, window, wanted["kind"])
    said = [*sayings.said, *(str(warning.message) for warning in warned)]
    print(json.dumps({**found, "threads": torch.get_num_threads(), "said": said}))


if __name__ == "__main__":
    main()
