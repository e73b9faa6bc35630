"""# duplicate-param-in-optimizer (FRZ203)

## What it does
Finds parameters that the optimizer has more than once, in one group or in several.

## Why is this bad?
Each step moves them as often as they are there, so that their rate is a multiple of what was set,
and momenta are updated that often. ``torch`` warns of a duplicate within a group, and cannot see
lists that were changed after the optimizer was built, as an unfreeze does.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer.param_groups[0]["params"] += list(model[1].parameters())
report = fl.audit(model, optimizer=optimizer)
assert [finding.code for finding in report.findings] == ["FRZ203"]
```

## Use instead
```python
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
assert fl.audit(model, optimizer=optimizer).ok
```

## Fix safety
Unsafe: steps become smaller, as they were meant to be. The first of the places stays.

## References
- torch.optim.Optimizer.add_param_group
- PyTorchLightning#8720: groups that are added when layers are unfrozen
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import by_owner, listed
from frostline.auditing.subject import Subject

_MEND = """\
seen = set()
for group in optimizer.param_groups:
    group["params"] = [p for p in group["params"] if not (id(p) in seen or seen.add(id(p)))]"""


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each module that has such parameters."""
    counts = Counter(id(parameter) for parameter in subject.stepped())
    if len(counts) == counts.total():
        return
    kind = type(subject.optimizer).__name__
    for group in by_owner(entry for entry in subject.parameters if counts[id(entry.tensor)] > 1):
        most = max(counts[id(entry.tensor)] for entry in group)
        names = listed([entry.attribute[:20] for entry in group])
        yield Sighting(
            subject.by_module[id(group[0].owner)].name,
            "warning",
            f"{names}: up to {most:,} times in the groups of {kind}, so stepped that often",
            _MEND,
        )


RULE = Rule(code="FRZ203", name="duplicate-param-in-optimizer", check=check)
