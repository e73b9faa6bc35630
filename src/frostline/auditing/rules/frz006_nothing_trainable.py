"""# nothing-trainable (FRZ006)

## What it does
Finds models of which no parameter is trainable although there is an optimizer or a loss for them.

## Why is this bad?
``loss.backward()`` raises "element 0 of tensors does not require grad", far from the line that
froze one module too many; with a gradient scaler it is "No inf checks were recorded", and an
optimizer built from the trainable parameters gets "an empty parameter list".

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model.requires_grad_(False)
report = fl.audit(model, optimizer=optimizer)
assert "FRZ006" in {finding.code for finding in report.findings}
```

## Use instead
```python
model[1].requires_grad_(True)
assert fl.audit(model, optimizer=optimizer).ok
```

## Fix safety
There is no code that mends this in general: only you know what is to be trained. An optimizer that
has trainable parameters of somebody else, as a student's, is no finding.

## References
- WeatherGenerator#856, mmengine#1518: everything was frozen, and the error came from elsewhere
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """At most one finding, about the model."""
    if subject.optimizer is None and subject.compute_loss is None:
        return
    own = (entry.tensor for entry in subject.tensors if entry.kind == "parameter")
    if any(p.requires_grad for p in own) or any(p.requires_grad for p in subject.stepped()):
        return
    count = len({id(entry.tensor) for entry in subject.tensors if entry.kind == "parameter"})
    yield Sighting(
        "",
        "error",
        f"none of {count:,} parameters is trainable, so backward() has nothing to compute",
        "# freeze less, for example everything but the head:\n#   fl.freeze(model, exclude='head')",
    )


RULE = Rule(code="FRZ006", name="nothing-trainable", check=check)
