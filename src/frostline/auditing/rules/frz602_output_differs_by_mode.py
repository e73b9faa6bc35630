"""# output-differs-by-mode (FRZ602)

## What it does
Compares the output of each frozen part in eval and in training mode, from the same inputs, and
names the first module whose own doing differs. Nothing is told of a part that is held.

## Why is this bad?
It need not be. But features that are cached in eval mode are not those of a training loop that has
called ``model.train()``, a distillation target is not what the teacher gives in use, and a loss
that is low in training may be high in evaluation. The size says whether it matters.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.2), torch.nn.Linear(4, 1))
model[:2].requires_grad_(False)
report = fl.audit(model, frozen=["0", "1"], batch=torch.randn(8, 4))
assert ("FRZ602", "1") in {(finding.code, finding.where) for finding in report.findings}
```

## Use instead
```python
fl.freeze(model, ["0", "1"])
report = fl.audit(model, frozen=["0", "1"], batch=torch.randn(8, 4))
assert report.findings == ()
```

## Fix safety
Safe for what is frozen: it does in training as in evaluation. The head sees other features than
before: without dropout they are not regularised.

## References
- pytorch/audio#1995: maintainers disagree whether the dropout of a frozen part should be off
- Lightning pull request 15063: statistics of the batch in a part that is said to be frozen
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.probes import Differing
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Each frozen part whose output depends on the mode, with the first module that makes it so."""
    if subject.probes is None:
        return
    first: dict[int, Differing] = {}
    for found in subject.probes.by_mode:
        first.setdefault(id(subject.top(found.facts).module), found)
    sizes: dict[int, float] = {}
    for output in subject.probes.outputs:  # of the layers of a list, which is never called itself
        part = id(subject.top(output.facts).module)
        sizes[part] = max(output.effect, sizes.get(part, 0.0))
    for key, found in first.items():
        top = subject.by_module[key]
        cause = found.facts
        by = "" if cause is top else f", first by {cause.name} ({cause.kind})"
        yield Sighting(
            top.name,
            "info",
            f"output in training mode differs by {sizes.get(key, found.effect):.2g} times its "
            f"size{by}",
            subject.freezing(top),
        )


RULE = Rule(code="FRZ602", name="output-differs-by-mode", check=check)
