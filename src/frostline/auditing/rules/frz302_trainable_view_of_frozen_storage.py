"""# trainable-view-of-frozen-storage (FRZ302)

## What it does
Finds frozen tensors some of whose bytes are those of a trainable parameter, too: slices of one flat
tensor that overlap, ``weight.data`` of another layer, a numpy array that two tensors were made of.

## Why is this bad?
``requires_grad`` belongs to a tensor object, memory to all that look at it. A step that moves the
trainable one moves the frozen one, and neither its flag nor its gradient says so.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
model[1].weight.data = model[0].weight.data
model[0].requires_grad_(False)
report = fl.audit(model)
assert [finding.code for finding in report.findings] == ["FRZ302"]
```

## Use instead
```python
model[1].weight.data = model[0].weight.detach().clone()
assert fl.audit(model).ok
```

## Fix safety
Unsafe: the frozen tensor gets memory of its own, with the values that it has now; what was shared
on purpose no longer is.

## References
- pytorch's FSDP and DeepSpeed keep parameters as slices of a flat tensor: pytorch#91167
- torch.Tensor.data, torch.from_numpy, which share memory
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.nn.parameter import is_lazy

from frostline._names import NamedTensor
from frostline._results import elide
from frostline.auditing.finding import Severity
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import code_for
from frostline.auditing.subject import Subject
from frostline.summaries.sharing import sharing


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each frozen tensor that shares bytes with something trainable."""
    claimed = [e for e in subject.claim.tensors.values() if not is_lazy(e.tensor)]
    trained = [
        entry
        for entry in subject.parameters
        if entry.tensor.requires_grad
        and id(entry.tensor) not in subject.claim.tensors
        and not is_lazy(entry.tensor)
    ]
    told: set[int] = set()
    for frozen, other in sharing(claimed, trained):
        if id(frozen.tensor) in told:
            continue
        told.add(id(frozen.tensor))
        yield Sighting(
            frozen.name,
            _severity(subject, frozen),
            f"shares memory with {elide(other.name, 60)}, which is trainable",
            _mend(subject, frozen),
            (frozen.name,),
        )


def _severity(subject: Subject, entry: NamedTensor) -> Severity:
    """A warning where a step was seen that left it alone: without an optimizer, or a rate of 0."""
    step, key = subject.now, id(entry.tensor)
    moves = step.how == "read" or key in step.changed or key in step.undecided
    return "error" if moves else "warning"


def _mend(subject: Subject, entry: NamedTensor) -> str:
    owner = code_for(subject.model, entry.owner)
    return f"frozen = getattr({owner}, {entry.attribute!r})\nfrozen.data = frozen.detach().clone()"


RULE = Rule(code="FRZ302", name="trainable-view-of-frozen-storage", check=check)
