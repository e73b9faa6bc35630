"""# moving-statistics-under-adapter (FRZ403)

## What it does
Finds norms in the frozen base of a model with PEFT adapters whose running statistics move: now, or
after ``model.train()``.

## Why is this bad?
``save_pretrained`` of such a model writes the adapter, and none of the base's buffers. Loaded onto
the base as it was, the adapter meets other statistics than those it was trained with, and the
output is another one.

## Example
```python
import torch, frostline as fl
from peft import LoraConfig, get_peft_model

norm = torch.nn.BatchNorm2d(4)
norm.running_var.fill_(2.0)
base = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), norm, torch.nn.Conv2d(4, 2, 1))
model = get_peft_model(base, LoraConfig(r=2, target_modules=["0"]))
report = fl.audit(model)
assert {finding.code for finding in report.findings} == {"FRZ403", "FRZ101"}
```

## Use instead
```python
fl.freeze(model, "1")
assert fl.audit(model).ok
```
Or save them too: ``LoraConfig(..., modules_to_save=["1"])``.

## Fix safety
Safe: the norms go on with the statistics of the base, as they will when the adapter is loaded.

## References
- peft#1732, peft#1734: a reloaded model that did not reproduce
- PEFT's guide to trouble, on models with batch norm
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.adapters import has_adapters
from frostline.auditing.subject import Subject

_MEND = """\
fl.freeze(model, lambda name, module: (
    "running_mean" in module._buffers
    and not any(p.requires_grad for p in module.parameters())
))"""


def check(subject: Subject) -> Iterator[Sighting]:
    """At most one finding, about the model."""
    if not has_adapters(subject):
        return
    now: list[str] = []
    later: list[str] = []
    norms = 0
    for facts in subject.frozen_modules():
        if facts.behaviour is not None and facts.behaviour.kind == "norm":
            written = subject.written(facts, subject.now)
            after = subject.written(facts, subject.after_train)
            norms += bool(written or after)
            now += written
            later += after
    if norms:
        when = "move" if now else "move after model.train()"
        yield Sighting(
            "",
            "error" if now else "warning",
            f"running statistics of {plural(norms, 'norm')} of the base {when}, "
            "and are in no checkpoint of the adapter",
            _MEND,
            tuple(dict.fromkeys([*now, *later])),
        )


RULE = Rule(code="FRZ403", name="moving-statistics-under-adapter", check=check)
