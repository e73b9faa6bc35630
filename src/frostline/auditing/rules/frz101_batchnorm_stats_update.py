"""# batchnorm-stats-update (FRZ101)

## What it does
Finds norms in the frozen part whose running statistics a forward writes, in the mode that they
are in now: BatchNorm of any number of dimensions, SyncBatchNorm, InstanceNorm that tracks, and
classes of others that keep such buffers.

## Why is this bad?
``running_mean`` and ``running_var`` are buffers. ``requires_grad=False`` says nothing about them:
a forward in training mode replaces them by ``0.9 * running + 0.1 * batch``. The frozen part then
gives another output on the same input, in evaluation too, and nobody notices, because every
parameter kept its value.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
model[0].running_var.fill_(2.0)
model[0].requires_grad_(False)
report = fl.audit(model)
assert "FRZ101" in {finding.code for finding in report.findings}
assert report.will_change == ("0.running_mean", "0.running_var", "0.num_batches_tracked")
```

## Use instead
```python
fl.freeze(model, "0")
assert fl.audit(model).ok
```
In plain PyTorch: ``model[0].eval()`` after each ``model.train()``.

## Fix safety
Safe: the norm normalises with its running statistics, as it does in evaluation. Training then
sees other activations than before, which is what freezing a norm means.

## References
- pytorch#86590: many who freeze do not know that the statistics move
- pytorch#9046, ultralytics#9391, lightly#1438, PyTorchLightning#13902
- Ioffe and Szegedy, Batch Normalization, 2015
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen norms that write their statistics now."""
    for facts in subject.frozen_modules():
        if facts.behaviour is None or facts.behaviour.kind != "norm":
            continue
        changed = subject.written(facts, subject.now)
        if changed:
            short = [name.rpartition(".")[2] for name in changed]
            listed = ", ".join(short[:-1]) + " and " + short[-1] if len(short) > 1 else short[0]
            yield Sighting(
                facts.name,
                "error",
                f"{facts.kind} in {_mode(facts.training)} mode: every forward writes {listed}",
                subject.freezing(facts),
                changed,
            )


def _mode(training: bool) -> str:
    return "training" if training else "eval"


RULE = Rule(code="FRZ101", name="batchnorm-stats-update", check=check)
