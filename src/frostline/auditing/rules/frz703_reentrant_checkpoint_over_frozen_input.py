"""# reentrant-checkpoint-over-frozen-input (FRZ703)

## What it does
Finds modules that recompute with ``use_reentrant=True`` and have something to train, where nothing
that comes before them in the model is trainable and no hook makes its output require gradients. It
is an error if a step was run and no gradient reached them, and a warning if none was run.

## Why is this bad?
Reentrant checkpointing gives an output that requires gradients only if an input of the module does.
With frozen embeddings none does: everything in the module is cut off, adapters included, and all
that is said of it is "None of the inputs have requires_grad=True".

## Example
```python
import functools, torch, frostline as fl
from torch.utils.checkpoint import checkpoint

class Net(torch.nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.body = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
        self.again = functools.partial(checkpoint, use_reentrant=reentrant)
        self.head = torch.nn.Linear(2, 1)
        self.stem.requires_grad_(False)
    def forward(self, x):
        return self.head(self.again(self.body, self.stem(x)))

assert [finding.code for finding in fl.audit(Net(True)).findings] == ["FRZ703"]
```

## Use instead
```python
assert fl.audit(Net(False), batch=torch.randn(4, 2)).ok
```
With transformers ``model.enable_input_require_grads()`` does it, too; it unfreezes nothing.

## Fix safety
Safe: the other form computes the same, and works with inputs that need no gradient.

## Known problems
Calls of ``checkpoint(..., use_reentrant=True)`` in the code of a forward are not seen; the function
has to be an attribute of a module, as in transformers and in torch's ``checkpoint_wrapper``.

## References
- transformers#21381, #23170, #42494, #42558, pytorch#7617
- torch.utils.checkpoint.checkpoint, on use_reentrant
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from frostline.auditing.finding import Severity
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.step import Step
from frostline.auditing.subject import Facts, Subject

_MEND = """\
import functools
for module in model.modules():
    for value in vars(module).values():
        if isinstance(value, functools.partial) and value.keywords.get("use_reentrant"):
            value.keywords["use_reentrant"] = False"""


def check(subject: Subject) -> Iterator[Sighting]:
    """At most one finding: what comes after the first cut is cut off as well."""
    owners = _owners(subject)
    first = _first_trainable_after_frozen(subject) if owners else None
    owner = _around(first, owners) if first is not None else None
    if first is None or owner is None:
        return
    severity = _severity(subject, first)
    if severity is not None:
        what = "no gradient reaches" if severity == "error" else "it may cut off"
        yield Sighting(
            owner.name,
            severity,
            f"reentrant checkpointing over frozen inputs: {what} {first.kind} in this {owner.kind}",
            _MEND,
        )


def _owners(subject: Subject) -> set[int]:
    """The innermost modules that recompute, or have something recompute, in reentrant form."""
    found: set[int] = set()
    for facts in subject.modules:
        own = vars(facts.module)
        if functools.partial not in map(type, own.values()):
            continue
        if any(map(_is_reentrant, own.values())) and own.get("gradient_checkpointing", True):
            found.add(id(facts.module))
    # Of transformers' models the outer one has the function, too, and hands it down.
    outer = (
        {id(f.module) for f in subject.modules if _has_below(f.module, found)} if found else set()
    )
    return found - outer


def _is_reentrant(value: Any) -> bool:
    if type(value) is not functools.partial or value.func not in (
        checkpoint,
        checkpoint_sequential,
    ):
        return False
    return value.keywords.get("use_reentrant") is True


def _has_below(module: nn.Module, found: set[int]) -> bool:
    if id(module) not in found:
        return False
    return any(id(inner) in found for inner in module.modules() if inner is not module)


def _first_trainable_after_frozen(subject: Subject) -> Facts | None:
    """The first module with something to train; None if nothing frozen, or a hook, is before it."""
    frozen = False
    for facts in subject.modules:
        flags = {p.requires_grad for p in facts.module._parameters.values() if p is not None}
        if True in flags:
            return facts if frozen else None
        frozen = frozen or False in flags
        if any(map(_requires_gradients, facts.module._forward_hooks.values())):
            return None
    return None


def _requires_gradients(hook: Any) -> bool:
    """Whether a hook makes an output require gradients, as ``enable_input_require_grads`` does."""
    code = getattr(getattr(hook, "__func__", hook), "__code__", None)
    return code is not None and not {"requires_grad_", "requires_grad"}.isdisjoint(code.co_names)


def _around(facts: Facts, owners: set[int]) -> Facts | None:
    inside: Facts | None = facts
    while inside is not None and id(inside.module) not in owners:
        inside = inside.parent
    return inside


def _severity(subject: Subject, first: Facts) -> Severity | None:
    """By what a step reached, where one was run."""
    if _missed(subject.now, first):
        return "error"
    unknown = subject.now.reached is None
    return "warning" if unknown or _missed(subject.after_train, first) else None


def _missed(step: Step, facts: Facts) -> bool:
    own = {id(p) for p in facts.module._parameters.values() if p is not None and p.requires_grad}
    return step.reached is not None and step.reached.isdisjoint(own)


RULE = Rule(code="FRZ703", name="reentrant-checkpoint-over-frozen-input", check=check)
