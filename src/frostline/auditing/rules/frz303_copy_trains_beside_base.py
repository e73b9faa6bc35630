"""# copy-trains-beside-base (FRZ303)

## What it does
Finds modules of PEFT's ``modules_to_save``: the base module stays frozen, and a copy of it trains
and is used in its place.

## Why is this bad?
It is how PEFT works, and it is read wrongly: ``model.classifier.original_module.weight`` never
changes, and what a checkpoint of the base has under that name is not what runs.

## Example
```python
import torch, frostline as fl
from peft import LoraConfig, get_peft_model

base = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
model = get_peft_model(base, LoraConfig(target_modules=["0"], modules_to_save=["1"]))
assert [finding.code for finding in fl.audit(model).findings] == ["FRZ303"]
```

## Use instead
```python
weight = model.base_model.model[1].modules_to_save["default"].weight  # the one that trains
assert weight.requires_grad
```

## Fix safety
Nothing has to be mended.

## References
- peft#503, #876: people looked at the one that does not change
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline._names import join
from frostline._results import elide
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject
from frostline.freezing.holders import full_name

_WRAPPER = "peft.utils.other.ModulesToSaveWrapper"


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each wrapper."""
    wrappers: dict[type, bool] = {}
    for facts in subject.modules:
        cls = type(facts.module)
        if cls not in wrappers:
            wrappers[cls] = any(full_name(base) == _WRAPPER for base in cls.__mro__)
        if not wrappers[cls]:
            continue
        copies = list(getattr(facts.module, "modules_to_save", ()))
        shown = elide(join("modules_to_save", ", ".join(copies)), 60)
        yield Sighting(
            facts.name,
            "info",
            f"original_module stays as it is; {shown} trains in its place",
            f"# what trains is {join(facts.name, 'modules_to_save')}",
        )


RULE = Rule(code="FRZ303", name="copy-trains-beside-base", check=check)
