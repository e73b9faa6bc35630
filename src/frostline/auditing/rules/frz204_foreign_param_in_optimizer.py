"""# foreign-param-in-optimizer (FRZ204)

## What it does
Finds parameters that the optimizer steps and that the model does not have. It is a warning where
something in the model looks like what took their place: a trainable parameter of the same shape
that no group has, or a ``weight`` or ``bias`` that is a buffer; else an information.

## Why is this bad?
A module that was replaced after the optimizer was built (a new head, norms that were swapped for
frozen ones) leaves its old parameters in the groups. They are stepped for nothing, and their
successors not at all. A loss with parameters of its own is the harmless case.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model[1] = torch.nn.Linear(2, 1)
report = fl.audit(model, optimizer=optimizer)
assert {finding.code for finding in report.findings} == {"FRZ204", "FRZ202"}
```

## Use instead
```python
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
assert fl.audit(model, optimizer=optimizer).ok
```

## Fix safety
Unsafe for a run that is to be resumed: a checkpoint of the optimizer has the old groups. The
parameters that took the place of the old ones are FRZ202.

## References
- timm's ``freeze_batch_norm_2d`` swaps modules and leaves 40 parameters of a ResNet-18 behind
- fromage#6: a resized embedding; pytorch#171523: parameters that a parallel style replaced
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from frostline._names import NamedTensor
from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject

_MEND = """\
known = {id(p) for p in model.parameters()}
for group in optimizer.param_groups:
    group["params"] = [p for p in group["params"] if id(p) in known]"""
_ADVICE = "# nothing to do if they belong to the loss or to another model that is trained with it"


def check(subject: Subject) -> Iterator[Sighting]:
    """At most one finding, about the optimizer."""
    own = {id(entry.tensor) for entry in subject.tensors if entry.kind == "parameter"}
    stepped = subject.stepped()
    foreign = [parameter for parameter in stepped if id(parameter) not in own]
    if not foreign:
        return
    kind = type(subject.optimizer).__name__
    looks = _successors(subject, {id(p) for p in stepped})
    replaced = [parameter for parameter in foreign if _look(parameter) in looks]
    if replaced:
        yield Sighting(
            "",
            "warning",
            f"{kind} steps {plural(len(replaced), 'parameter')} that the model no longer has, "
            f"such as the one that {looks[_look(replaced[0])][:30]} replaced",
            _MEND,
        )
    else:
        message = f"{kind} steps {plural(len(foreign), 'parameter')} that the model does not have"
        yield Sighting("", "info", message, _ADVICE)


def _successors(subject: Subject, stepped: set[int]) -> dict[tuple[torch.Size, torch.dtype], str]:
    """What may have taken the place of a stepped parameter, by its looks: a name for each."""
    found: dict[tuple[torch.Size, torch.dtype], str] = {}
    for entry in subject.tensors:
        if id(entry.tensor) not in stepped and _may_succeed(entry):
            found.setdefault(_look(entry.tensor), entry.name)
    return found


def _may_succeed(entry: NamedTensor) -> bool:
    if entry.kind == "parameter":
        return entry.tensor.requires_grad and not is_lazy(entry.tensor)
    return entry.kind == "buffer" and entry.attribute in ("weight", "bias")


def _look(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


RULE = Rule(code="FRZ204", name="foreign-param-in-optimizer", check=check)
