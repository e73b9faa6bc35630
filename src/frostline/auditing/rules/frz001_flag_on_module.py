"""# flag-on-module (FRZ001)

## What it does
Finds modules with a plain attribute ``requires_grad`` that is False, while parameters at or below
them are trainable.

## Why is this bad?
``module.requires_grad = False`` makes a new attribute of the module that nobody reads. Only tensors
have the flag. No error is raised, the module trains on, and the number of trainable parameters is
the only sign of it.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
model[0].requires_grad = False
assert [finding.code for finding in fl.audit(model).findings] == ["FRZ001"]
assert model[0].weight.requires_grad
```

## Use instead
```python
fl.freeze(model, "0")
assert fl.audit(model).ok
```
In plain PyTorch: ``model[0].requires_grad_(False)``, with the underscore and parentheses.

## Fix safety
Unsafe: what trained until now no longer does. Modules below that have the attribute with the value
True are left out of the freeze.

## References
- ProtoContra-SFDA#18, discuss.pytorch.org 9979: frozen in this way, and nothing was
- FixRes, imnet_finetune/train.py: ``model.requires_grad=False`` before the EfficientNet is trained
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Facts, Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Each module that says False, unless one above it says so too."""
    if not any("requires_grad" in vars(facts.module) for facts in subject.modules):
        return
    said, excluded = _said(subject)
    trainable: dict[int, int] = {}
    for entry in subject.parameters:
        by = said[id(entry.owner)]
        if by is not None and entry.tensor.requires_grad:
            trainable[id(by.module)] = trainable.get(id(by.module), 0) + 1
    for key, count in trainable.items():
        facts = subject.by_module[key]
        yield Sighting(
            facts.name,
            "error",
            f"requires_grad = False is a plain attribute of this {facts.kind}: "
            f"{plural(count, 'parameter')} in it can be trained",
            _mend(facts.name, excluded.get(key, [])),
        )


def _said(subject: Subject) -> tuple[dict[int, Facts | None], dict[int, list[str]]]:
    """Which module says False for each module; and what below that one says True."""
    said: dict[int, Facts | None] = {}
    excluded: dict[int, list[str]] = {}
    for facts in subject.modules:
        above = said[id(facts.parent.module)] if facts.parent is not None else None
        own = vars(facts.module).get("requires_grad")
        if own is True and above is not None:
            excluded.setdefault(id(above.module), []).append(facts.name)
        here = above or facts if own is False else above
        said[id(facts.module)] = None if own is True else here
    return said, excluded


def _mend(name: str, exclude: list[str]) -> str:
    given = [repr(name)] if name else []
    given += [f"exclude={exclude!r}"] if exclude else []
    return f"fl.freeze({', '.join(['model', *given])})"


RULE = Rule(code="FRZ001", name="flag-on-module", check=check)
