"""# batchnorm-in-microbatches (FRZ501)

## What it does
Counts the norms outside the frozen part that normalise with the batch now.

## Why is this bad?
It is not, as long as a step is one batch. With gradient accumulation each microbatch is normalised
by itself: the gradients of 2 microbatches of 8 are not those of a batch of 16, and the running
statistics are averaged twice as often.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
report = fl.audit(model)
assert [finding.code for finding in report.findings] == ["FRZ501"]
assert report.ok
```

## Use instead
```python
def compute_loss(model, batch):
    return model(batch).square().mean()

# the gradients of the batch of 16
fl.accumulate(model, compute_loss, fl.split(torch.randn(16, 3), count=2))
fl.freeze(model, "1")  # or norms that do not look at the batch
assert fl.audit(model).findings == ()
```

## Fix safety
Nothing has to be mended where gradients are not accumulated.

## References
- Ioffe and Szegedy, Batch Normalization, 2015
- pytorch#4534 and many like it: why accumulated gradients differ
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Facts, Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """At most one finding, about the model."""
    count = sum(1 for facts in subject.modules if not facts.frozen and _looks_at_the_batch(facts))
    if count:
        norms = plural(count, "norm")
        yield Sighting(
            "",
            "info",
            f"{norms} {'normalises' if count == 1 else 'normalise'} with the batch: "
            "microbatches give other gradients than the whole batch",
            "# accumulate so that it makes no difference:\n"
            "#   fl.accumulate(model, compute_loss, microbatches)",
        )


def _looks_at_the_batch(facts: Facts) -> bool:
    doing = facts.doing(facts.training)
    return doing is not None and doing.statistics == "batch"


RULE = Rule(code="FRZ501", name="batchnorm-in-microbatches", check=check)
