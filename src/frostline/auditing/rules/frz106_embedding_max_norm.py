"""# embedding-max-norm (FRZ106)

## What it does
Finds ``Embedding`` and ``EmbeddingBag`` with ``max_norm`` in the frozen part, if they have rows
that are too long.

## Why is this bad?
With ``max_norm`` each lookup first shortens the rows that it looks up, in place, in the weight.
Neither ``requires_grad=False`` nor eval mode nor ``torch.no_grad()`` keeps it from that.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Embedding(10, 4, max_norm=0.1), torch.nn.Linear(4, 1))
model[0].requires_grad_(False)
report = fl.audit(model)
assert [finding.code for finding in report.findings] == ["FRZ106"]
assert report.will_change == ("0.weight",)
```

## Use instead
```python
fl.freeze(model, "0")
assert fl.audit(model).ok
```

## Fix safety
Safe: the layer shortens copies of the rows, so that its output is bit for bit what it was.

## Known problems
Without a batch nobody knows which rows will be looked up: it is an error as soon as one row is too
long. Frozen rows that are all short enough are no finding.

## References
- pytorch#26596 and pytorch#28959: lookups that change the weight
- torch's documentation of ``Embedding``: ``max_norm`` modifies the weight in place
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.mechanisms import written_by
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen embeddings that shorten what they look up."""
    for facts, names, severity in written_by(subject, "max_norm"):
        longest = float(getattr(facts.module, "max_norm"))  # noqa: B009  (a module's, by its type)
        yield Sighting(
            facts.name,
            severity,
            f"{facts.kind}(max_norm={longest:g}) shortens the rows that it looks up, in every mode",
            subject.freezing(facts),
            names,
        )


RULE = Rule(code="FRZ106", name="embedding-max-norm", check=check)
