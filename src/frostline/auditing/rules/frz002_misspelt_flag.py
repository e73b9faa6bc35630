"""# misspelt-flag (FRZ002)

## What it does
Finds attributes of modules and parameters whose names are nearly ``requires_grad``, such as
``require_grad`` or ``requires_grads``, and that say True or False where the flag does not. An
attribute that the module's own class uses is left alone.

## Why is this bad?
Python lets anybody add attributes to modules and parameters. ``parameter.require_grad = False``
does that, and the parameter is trained as before.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
for parameter in model[0].parameters():
    parameter.require_grad = False
assert [finding.code for finding in fl.audit(model).findings] == ["FRZ002"]
```

## Use instead
```python
for parameter in model[0].parameters():
    del parameter.require_grad
fl.freeze(model, "0")
assert fl.audit(model).ok
```
In plain PyTorch: ``parameter.requires_grad = False``.

## Fix safety
Unsafe: the flags become what the attributes say, so that other parameters are trained than before.

## References
- the ways in which freezing fails silently: discuss.pytorch.org 9979
- torch.Tensor.requires_grad, torch.nn.Module.requires_grad_
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import SequenceMatcher

from torch import nn

from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import common_place
from frostline.auditing.subject import Facts, Subject

_FLAG = "requires_grad"
# Lets through requires_grads, require_grads, required_grad; not requires_graph.
_NEAR = 0.9


def check(subject: Subject) -> Iterator[Sighting]:
    """For each wrong name: the parameters that have it, then the modules."""
    used = set[str]().union(*(vars(facts.module) for facts in subject.modules))
    used.update(*(vars(entry.tensor) for entry in subject.parameters))
    for name in sorted(filter(_is_near, used)):
        for value in (False, True):
            yield from _on_parameters(subject, name, value)
            yield from _on_modules(subject, name, value)


def _is_near(name: str) -> bool:
    if name == _FLAG or name.startswith("_"):
        return False
    plain = name.lower().replace("_", "")
    return SequenceMatcher(None, plain, _FLAG.replace("_", "")).ratio() >= _NEAR


def _on_parameters(subject: Subject, name: str, value: bool) -> Iterator[Sighting]:
    wrong = [
        entry.name
        for entry in subject.parameters
        if vars(entry.tensor).get(name) is value and entry.tensor.requires_grad is not value
    ]
    if wrong:
        message = f"{name} = {value} is no flag of a tensor: {_consequence(len(wrong), value)}"
        yield Sighting(common_place(wrong), "error", message, _mend("parameters", name))


def _on_modules(subject: Subject, name: str, value: bool) -> Iterator[Sighting]:
    """The outermost of those that say so and have parameters of which it is not true."""
    found: set[int] = set()
    for facts in subject.modules:
        if facts.parent is not None and id(facts.parent.module) in found:
            found.add(id(facts.module))
        elif vars(facts.module).get(name) is value and not _uses(facts, name):
            wrong = [p for p in facts.module.parameters() if p.requires_grad is not value]
            if wrong:
                found.add(id(facts.module))
                message = f"{name} = {value} is no flag: {_consequence(len(wrong), value)}"
                yield Sighting(facts.name, "error", message, _mend("modules", name))


def _uses(facts: Facts, name: str) -> bool:
    """Whether the class has this attribute for a purpose of its own."""
    own: Iterable[type] = type(facts.module).__mro__
    functions = (f for cls in own if cls is not nn.Module for f in vars(cls).values())
    return any(name in code.co_names for f in functions if (code := getattr(f, "__code__", None)))


def _consequence(count: int, value: bool) -> str:
    state = "not trained" if value else "trained all the same"
    return f"{plural(count, 'parameter')} {'is' if count == 1 else 'are'} {state}"


def _mend(of: str, name: str) -> str:
    return (
        f"for thing in model.{of}():\n"
        f"    if {name!r} in vars(thing):\n"
        f"        value = vars(thing).pop({name!r})\n"
        f"        thing.requires_grad_(value)"
    )


RULE = Rule(code="FRZ002", name="misspelt-flag", check=check)
