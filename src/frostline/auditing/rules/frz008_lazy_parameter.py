"""# lazy-parameter (FRZ008)

## What it does
Finds frozen modules with parameters that have no shape yet, as those of ``nn.LazyLinear``.

## Why is this bad?
The first forward gives them a shape and random values. What was frozen is then a layer that nobody
trained, and an optimizer that was built before knows nothing of it.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.LazyLinear(2), torch.nn.Linear(2, 1))
for parameter in model[0].parameters():
    parameter.requires_grad = False
assert [finding.code for finding in fl.audit(model).findings] == ["FRZ008"]
```

## Use instead
```python
model(torch.randn(4, 3))
assert fl.audit(model).ok
```

## Fix safety
There is no code that mends this in general: run one batch through the model, then load, then
freeze.

## References
- torch.nn.modules.lazy.LazyModuleMixin
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn.parameter import is_lazy

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import by_owner, listed, names
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each module that has such parameters."""
    lazy = (e for e in subject.parameters if is_lazy(e.tensor) and subject.is_frozen(e.tensor))
    for group in by_owner(lazy):
        facts = subject.by_module[id(group[0].owner)]
        yield Sighting(
            facts.name,
            "warning",
            f"{facts.kind} is frozen, and the first forward fills "
            f"{listed([entry.attribute for entry in group])} with random values",
            "# run one batch through the model before its weights are loaded and frozen:\n"
            "#   model(batch)",
            names(group),
        )


RULE = Rule(code="FRZ008", name="lazy-parameter", check=check)
