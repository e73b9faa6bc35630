"""# stale-grad (FRZ005)

## What it does
Finds frozen parameters whose ``.grad`` is not None. It is an error where the next step of the
optimizer changes them, and a warning elsewhere. Parameters that ``fl.freeze`` holds are left out:
it clears their gradients before each step.

## Why is this bad?
Optimizers ask whether ``.grad`` is None, and never look at ``requires_grad``. A gradient from
before the freeze is applied in each step that follows, as nothing replaces it. A gradient of
zeros, which ``zero_grad(set_to_none=False)`` leaves, still brings weight decay and momentum. And
``clip_grad_norm_`` counts it, so that everything else takes a smaller step.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
optimizer = torch.optim.AdamW(model.parameters())
model(torch.randn(4, 2)).sum().backward()
model[0].requires_grad_(False)
optimizer.zero_grad(set_to_none=False)
report = fl.audit(model, optimizer=optimizer)
assert "FRZ005" in {finding.code for finding in report.findings}
assert "0.weight" in report.will_change
```

## Use instead
```python
for parameter in model[0].parameters():
    parameter.grad = None
assert fl.audit(model, optimizer=optimizer).ok
```
``fl.freeze(model, "0", optimizer=optimizer)`` does so, and sets the optimizer's state aside.

## Fix safety
Safe: these gradients belong to no step that is still to come.

## References
- discuss.pytorch.org 153740, sparseml#965: weights that moved after they were frozen
- torch.optim.Optimizer.zero_grad, on set_to_none
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline._names import NamedTensor
from frostline._results import plural
from frostline.auditing.finding import Severity
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import by_place, is_held, names
from frostline.auditing.subject import Subject

_MEND = (
    "for parameter in model.parameters():\n"
    "    if not parameter.requires_grad:\n"
    "        parameter.grad = None"
)


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for those of a frozen module that move, and one for the others."""
    found = [entry for entry in subject.parameters if _is_stale(entry)]
    moved = [entry for entry in found if id(entry.tensor) in subject.now.changed]
    calm = [entry for entry in found if id(entry.tensor) not in subject.now.changed]
    yield from _told(subject, moved, "error", f"with which {_optimizer(subject)} moves")
    yield from _told(subject, calm, "warning", "which clip_grad_norm_ counts")


def _is_stale(entry: NamedTensor) -> bool:
    parameter = entry.tensor
    return not parameter.requires_grad and parameter.grad is not None and not is_held(entry)


def _told(
    subject: Subject, entries: list[NamedTensor], severity: Severity, consequence: str
) -> Iterator[Sighting]:
    for where, group in by_place(subject, entries):
        one = len(group) == 1
        has = f"{'has an old gradient' if one else 'have old gradients'}, {consequence}"
        if severity == "error":
            has += " it" if one else " them"
        message = f"{plural(len(group), 'frozen parameter')} {has}"
        yield Sighting(where, severity, message, _MEND, names(group))


def _optimizer(subject: Subject) -> str:
    return type(subject.optimizer).__name__ if subject.optimizer is not None else "a step"


RULE = Rule(code="FRZ005", name="stale-grad", check=check)
