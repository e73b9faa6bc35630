"""# state-outside-checkpoint (FRZ401)

## What it does
Finds frozen tensors that a training step changes and that are in no state dict: buffers registered
with ``persistent=False``, and tensors that are plain attributes of a module.

## Why is this bad?
A comparison of two checkpoints, or a hash of one, does not see them change, and after a resume they
are what they were at the beginning. ``model.to(device)`` leaves plain attributes behind as well.

## Example
```python
import torch, frostline as fl

norm = torch.nn.BatchNorm1d(2)
norm.register_buffer("running_mean", torch.tensor([0.2, 0.4]), persistent=False)
model = torch.nn.Sequential(norm, torch.nn.Linear(2, 1))
norm.requires_grad_(False)
report = fl.audit(model)
assert {finding.code for finding in report.findings} == {"FRZ401", "FRZ101"}
```

## Use instead
```python
norm.register_buffer("running_mean", norm.running_mean)
fl.freeze(model, "0")
assert fl.audit(model).ok
```

## Fix safety
Unsafe for files: checkpoints from before lack the new key, which ``load_state_dict`` reports.

## References
- torch.nn.Module.register_buffer, on persistent
- frozen state that a hash of the state dict cannot see: ``fl.digest(model)`` covers it
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline._names import NamedTensor
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import code_for
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each such tensor."""
    now = subject.now.changed
    changed = now | subject.after_train.changed
    for key, entry in subject.claim.tensors.items():
        if entry.persistent or key not in changed:
            continue
        when = "in a training step" if key in now else "after model.train()"
        what = "a plain attribute" if entry.kind == "attribute" else "a non-persistent buffer"
        yield Sighting(
            entry.name,
            "warning",
            f"{what}, so in no state dict, and it changes {when}",
            _mend(subject, entry),
            (entry.name,),
        )


def _mend(subject: Subject, entry: NamedTensor) -> str:
    place = "_buffers" if entry.kind == "buffer" else "__dict__"
    return (
        f"owner = {code_for(subject.model, entry.owner)}\n"
        f"value = owner.{place}.pop({entry.attribute!r})\n"
        f"owner.register_buffer({entry.attribute!r}, value.detach())"
    )


RULE = Rule(code="FRZ401", name="state-outside-checkpoint", check=check)
