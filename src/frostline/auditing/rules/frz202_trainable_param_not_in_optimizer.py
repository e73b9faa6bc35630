"""# trainable-param-not-in-optimizer (FRZ202)

## What it does
Finds parameters with ``requires_grad=True`` that no group of the optimizer has, and that are not
claimed to be frozen.

## Why is this bad?
They never change, and everything looks as if they did: after an unfreeze that the optimizer was
not told of, in a new head or an adapter that was added after it was built. If they were left out
to keep them as they are, gradients are computed and added up for ever, and ``clip_grad_norm_``
counts them.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
model[0].requires_grad_(False)
optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
model[0].requires_grad_(True)
report = fl.audit(model, optimizer=optimizer)
assert [finding.code for finding in report.findings] == ["FRZ202"]
```

## Use instead
```python
optimizer.add_param_group({"params": model[0].parameters(), "lr": 1e-4})
assert fl.audit(model, optimizer=optimizer).ok
```
If they are to stay as they are: ``fl.freeze(model, "0")``.

## Fix safety
Unsafe: they are trained from now on, with the options of the last group. A scheduler keeps its
list of groups, as none is added.

## Known problems
With several optimizers, an audit with one of them tells of the parameters of the others.

## References
- luxonis-train#358: 0 of 10 parameters were in an optimizer after the unfreeze
- discuss.pytorch.org 58156, pix2pixHD#249: frozen by leaving them out
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline._names import NamedTensor
from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import by_owner
from frostline.auditing.subject import Subject

_MEND = """\
known = {id(p) for group in optimizer.param_groups for p in group["params"]}
for parameter in model.parameters():
    if parameter.requires_grad and id(parameter) not in known:
        optimizer.param_groups[-1]["params"].append(parameter)"""


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each module that has such parameters."""
    if subject.optimizer is None:
        return
    kind = type(subject.optimizer).__name__
    for group in by_owner(_missing(subject)):
        names = " and ".join(entry.attribute[:30] for entry in group)
        what = names if len(group) < 3 else plural(len(group), "parameter")
        yield Sighting(
            subject.by_module[id(group[0].owner)].name,
            "warning",
            f"{what} {'is' if len(group) == 1 else 'are'} trainable and in no group of {kind}",
            _MEND,
        )


def _missing(subject: Subject) -> Iterator[NamedTensor]:
    stepped = {id(parameter) for parameter in subject.stepped()}
    for entry in subject.parameters:
        key = id(entry.tensor)
        if key not in stepped and entry.tensor.requires_grad and key not in subject.claim.tensors:
            yield entry


RULE = Rule(code="FRZ202", name="trainable-param-not-in-optimizer", check=check)
