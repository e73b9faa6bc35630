"""# optimizer-moves-without-gradient (FRZ205)

## What it does
Finds frozen parameters in an optimizer that writes to all that it was given, with or without
gradients: LBFGS. It is an error once the optimizer has taken a step, and a warning before.

## Why is this bad?
LBFGS takes all its parameters for one long vector, reads a missing gradient as zeros, and moves the
vector along directions that it made of earlier steps. A parameter that was frozen after such a step
goes on moving.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
optimizer = torch.optim.LBFGS(model.parameters())
model[0].requires_grad_(False)
report = fl.audit(model, optimizer=optimizer)
assert [finding.code for finding in report.findings] == ["FRZ205"]
```

## Use instead
```python
optimizer = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad])
assert fl.audit(model, optimizer=optimizer).ok
```

## Fix safety
Unsafe: the optimizer is built anew, so what it learned of the curvature is lost.

## References
- Liu and Nocedal, On the limited memory BFGS method, 1989; torch/optim/lbfgs.py
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import LBFGS

from frostline._results import plural
from frostline.auditing.finding import Severity
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import by_place, is_held, names
from frostline.auditing.subject import Subject

_MEND = """\
options = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
optimizer = torch.optim.LBFGS([p for p in model.parameters() if p.requires_grad], **options)"""


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each frozen part; what a part holds makes the step raise instead."""
    if not isinstance(subject.optimizer, LBFGS) or not _trains(subject):
        return
    stepped = {id(parameter) for parameter in subject.stepped()}
    frozen = [
        entry
        for entry in subject.parameters
        if id(entry.tensor) in stepped and not entry.tensor.requires_grad and not is_held(entry)
    ]
    lived = bool(subject.optimizer.state)
    severity: Severity = "error" if lived else "warning"
    how = "along its earlier directions" if lived else "once it has taken a step"
    for where, group in by_place(subject, frozen):
        what = plural(len(group), "frozen parameter")
        message = f"LBFGS moves {what} without gradients, {how}"
        yield Sighting(where, severity, message, _MEND, names(group))


def _trains(subject: Subject) -> bool:
    """Whether anything is trainable; else no step comes, which FRZ006 tells."""
    return any(entry.tensor.requires_grad for entry in subject.parameters)


RULE = Rule(code="FRZ205", name="optimizer-moves-without-gradient", check=check)
