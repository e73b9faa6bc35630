"""# frozen-param-in-optimizer (FRZ201)

## What it does
Finds frozen parameters in the optimizer's groups that have no gradient.

## Why is this bad?
As long as ``.grad`` is None the optimizer passes over them: they are inert. What remains is their
state, momenta that take memory and that a checkpoint carries, and that old gradients or momenta
act as soon as something gives them a gradient again.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
optimizer = torch.optim.AdamW(model.parameters())
model[0].requires_grad_(False)
report = fl.audit(model, optimizer=optimizer)
assert [finding.code for finding in report.findings] == ["FRZ201"]
assert report.ok
```

## Use instead
```python
optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
assert fl.audit(model, optimizer=optimizer).findings == ()
```

## Fix safety
Unsafe for a run that is to be resumed: a checkpoint of the optimizer has the old groups.

## References
- discuss.pytorch.org 58156, 175455: what happens to frozen parameters in an optimizer
- composer#1002: state of removed parameters, and a KeyError when it was saved
"""

from __future__ import annotations

from collections.abc import Iterator

from torch.optim import LBFGS

from frostline._names import NamedTensor
from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import common_place, names
from frostline.auditing.subject import Subject

_MEND = """\
for group in optimizer.param_groups:
    for parameter in group["params"]:
        if not parameter.requires_grad:
            optimizer.state.pop(parameter, None)
    group["params"] = [p for p in group["params"] if p.requires_grad]"""


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for all of them: nothing changes, and one piece of code takes them out."""
    if subject.optimizer is None or isinstance(subject.optimizer, LBFGS):
        return
    inert = list(_inert(subject))
    kind, state = type(subject.optimizer).__name__, subject.optimizer.state
    if inert:
        kept = sum(1 for entry in inert if entry.tensor in state)
        also = f"; it keeps state for {kept:,}" if kept else ""
        one = "is" if len(inert) == 1 else "are"
        yield Sighting(
            common_place(names(inert)),
            "info",
            f"{plural(len(inert), 'frozen parameter')} {one} in {kind}, without gradients{also}",
            _MEND,
        )


def _inert(subject: Subject) -> Iterator[NamedTensor]:
    stepped = {id(parameter) for parameter in subject.stepped()}
    for entry in subject.parameters:
        parameter = entry.tensor
        if id(parameter) in stepped and not parameter.requires_grad and parameter.grad is None:
            yield entry


RULE = Rule(code="FRZ201", name="frozen-param-in-optimizer", check=check)
