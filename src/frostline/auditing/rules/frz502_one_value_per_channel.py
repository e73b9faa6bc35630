"""# one-value-per-channel (FRZ502)

## What it does
Finds a batch for which torch refuses to normalise: a norm in training mode that gets one value for
each channel. This is measured, or predicted, with the batch that was given.

## Why is this bad?
The variance of one value is 0, so BatchNorm raises, and the run ends. It happens with one sample
behind a global pooling, with a last batch of one sample in an epoch, and with small inputs that
have shrunk to one pixel. The counter of the norm has moved by then, and so have the statistics of
the norms before it, those of frozen ones included.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
model[1].running_var.fill_(2.0)
report = fl.audit(model, batch=torch.randn(1, 4))
assert ("FRZ502", "1") in {(finding.code, finding.where) for finding in report.findings}
```

## Use instead
```python
assert fl.audit(model, batch=torch.randn(2, 4)).ok  # DataLoader(..., drop_last=True)
fl.freeze(model, "1", params=False)  # or normalise with the running statistics
assert fl.audit(model, batch=torch.randn(1, 4)).ok
```

## Fix safety
For a frozen norm holding it is safe. A trainable one needs another batch or another norm, which
changes what is trained.

## References
- mmdetection#437 and #2155: one image, and a norm behind a pooling
- torch.nn.functional.batch_norm, which raises it
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.finding import Severity
from frostline.auditing.measuring.raising import ONE_VALUE, place_in
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject

_MEND = (
    "# give this norm two samples or more: DataLoader(..., drop_last=True); or take one that\n"
    "# looks at single samples (GroupNorm), or hold it: fl.freeze(model, NAME, params=False)"
)


def check(subject: Subject) -> Iterator[Sighting]:
    """The norm at which a step ended."""
    ways: tuple[tuple[str, Severity, str], ...] = (
        (subject.now.raised, "error", ""),
        (subject.after_train.raised, "warning", "after model.train(): "),
    )
    for raised, severity, when in ways:
        if ONE_VALUE not in raised:
            continue
        where = place_in(raised) or ""
        facts = next((f for f in subject.modules if f.name == where), subject.modules[0])
        yield Sighting(
            facts.name,
            severity,
            f"{when}{facts.kind} gets one value for each channel of this batch, and torch raises",
            subject.freezing(facts) if facts.frozen else _MEND,
        )
        return


RULE = Rule(code="FRZ502", name="one-value-per-channel", check=check)
