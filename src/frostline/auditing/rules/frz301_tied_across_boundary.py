"""# tied-across-boundary (FRZ301)

## What it does
Finds tensors that hang in the model at several places of which some are claimed to be frozen and
some are not, such as an output layer whose weight is the embedding.

## Why is this bad?
It is one tensor. If it is frozen, the other place does not learn; if it is trained, the claim does
not hold. ``named_parameters()`` lists it once, under one of its names.

## Example
```python
import torch, frostline as fl

model = torch.nn.ModuleDict({
    "embed": torch.nn.Embedding(10, 4), "head": torch.nn.Linear(4, 10, bias=False),
})
model["head"].weight = model["embed"].weight
model["embed"].requires_grad_(False)
report = fl.audit(model, frozen="embed")
assert [finding.code for finding in report.findings] == ["FRZ301"]
```

## Use instead
```python
assert fl.audit(model, frozen=["embed", "head"]).ok
```
Or give the head a weight of its own: ``head.weight = nn.Parameter(head.weight.detach().clone())``.

## Fix safety
There is no code that mends this in general: whether both are frozen or both are trained, or the
two are made independent, is another model each.

## Known problems
A module that hangs at several places, one of them claimed, counts as claimed at all of them.

## References
- transformers#11903, #31467: a frozen embedding, and a head that did not learn
- LlamaFactory#5032, fromage#18: tied weights that trained although half of them was frozen
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline._names import partly_chosen
from frostline._results import elide
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each such tensor."""
    if not subject.claim.selected:
        return
    for inside, outside, tensor in partly_chosen(subject.tensors, subject.claim.selected):
        state = "trainable" if tensor.requires_grad else "frozen"
        yield Sighting(
            inside[0],
            "error",
            f"the same {state} tensor as {elide(outside[0], 60)}, which is not claimed",
            f"# claim all of its places, or give {outside[0]} memory of its own:\n"
            f"#   fl.audit(model, frozen={[*inside[:1], *outside]!r})",
            (inside[0],) if tensor.requires_grad else (),
        )


RULE = Rule(code="FRZ301", name="tied-across-boundary", check=check)
