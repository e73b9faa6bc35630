"""# unexplained-change (FRZ100)

## What it does
Finds frozen tensors that a training step changes and that no other rule accounts for.

## Why is this bad?
Something writes to a frozen tensor: a hook, a callback of the optimizer, code of a module that
nobody knows. Whatever it is, the tensor will not be what it was. The finding names the operation
that wrote it and the module that was running, where they were seen.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
model[0].requires_grad_(False)
decay = lambda optimizer, args, kwargs: model[0].weight.data.mul_(0.9)
optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
optimizer.register_step_post_hook(decay)
report = fl.audit(model, optimizer=optimizer, batch=torch.randn(4, 2))
assert "FRZ100" in {finding.code for finding in report.findings}
```

## Use instead
```python
optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)  # without the hook
assert fl.audit(model, optimizer=optimizer, batch=torch.randn(4, 2)).ok
```

## Fix safety
There is no code that mends this in general: find the writer. ``fl.guard(model, pinpoint=True)``
names the line.

## References
- freezing by zeroed gradients, and what writes all the same: sparseml#965
- router biases that an optimizer hook moves: prime-rl#2953
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen tensors that change now and that no finding has named."""
    for key, entry in subject.claim.tensors.items():
        if key not in subject.now.changed or entry.name in subject.explained:
            continue
        writer = subject.now.writers.get(key)
        by = f", written by {writer}" if writer else ""
        yield Sighting(
            entry.name,
            "error",
            f"changes in a training step{by}",
            "# find the line that writes it:\n"
            "#   with fl.guard(model, pinpoint=True): train(model)",
            (entry.name,),
        )


RULE = Rule(code="FRZ100", name="unexplained-change", check=check)
