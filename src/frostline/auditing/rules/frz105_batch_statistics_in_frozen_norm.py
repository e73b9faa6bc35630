"""# batch-statistics-in-frozen-norm (FRZ105)

## What it does
Finds norms in the frozen part that leave their running statistics alone and normalise with the
batch all the same, now or after ``model.train()``: with ``track_running_stats=False`` or
``momentum=0``. It is info and no more where the norm has no running statistics at all, since
then it does so in eval mode, too. A part that was frozen with ``stats="batch"`` does it on purpose.

## Why is this bad?
Both settings are known as ways to freeze a BatchNorm, and they stop its buffers only. In training
mode it still divides by the batch's own variance, so the output for an image depends on the other
images of the batch, and differs from what evaluation gives. ``momentum=0`` counts batches on top.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
model[0].running_var.fill_(2.0)
model[0].requires_grad_(False)
model[0].track_running_stats = False
assert [finding.code for finding in fl.audit(model).findings] == ["FRZ105"]
```

## Use instead
```python
fl.freeze(model, "0")
assert fl.audit(model).ok
```
With ``stats="batch"``, if normalising with the batch is what is wanted.

## Fix safety
The norm then normalises with its running statistics, so what training sees changes; the running
statistics must be those of the data that the frozen part was trained on.

## References
- PyTorchLightning PR#15063: freezing by ``track_running_stats=False``
- Ioffe and Szegedy, Batch Normalization, 2015
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Facts, Subject
from frostline.behaviours import Doing
from frostline.behaviours.leaking import follows_on_purpose
from frostline.freezing.record import BATCH


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen norms that use the batch and keep nothing of it."""
    for facts in subject.frozen_modules():
        if facts.behaviour is None or facts.behaviour.kind != "norm" or _is_meant(facts):
            continue
        for training, when in ((facts.training, "now"), (facts.after_train, "after model.train()")):
            if _uses_the_batch(facts.doing(training)):
                yield _seen(subject, facts, when)
                break


def _is_meant(facts: Facts) -> bool:
    return BATCH in vars(facts.module) or follows_on_purpose(facts.module)


def _uses_the_batch(doing: Doing | None) -> bool:
    if doing is None or doing.statistics != "batch":
        return False
    return not any(write.tensor in ("running_mean", "running_var") for write in doing.writes)


def _seen(subject: Subject, facts: Facts, when: str) -> Sighting:
    if _uses_the_batch(facts.doing(False)):
        mend = (
            f"# {facts.kind} has no running statistics to use instead: put GroupNorm in its place"
        )
        message = f"{facts.kind} without running statistics normalises with the batch in every mode"
        return Sighting(facts.name, "info", message, mend)
    setting = "momentum=0" if vars(facts.module).get("momentum") == 0 else "no tracking"
    message = f"{facts.kind} with {setting} normalises with the batch {when}, not as in evaluation"
    return Sighting(facts.name, "warning", message, subject.freezing(facts))


RULE = Rule(code="FRZ105", name="batch-statistics-in-frozen-norm", check=check)
