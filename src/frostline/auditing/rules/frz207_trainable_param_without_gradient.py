"""# trainable-param-without-gradient (FRZ207)

## What it does
Finds trainable parameters that no gradient reached in a measured or predicted step, neither in the
modes of now nor after ``model.train()``. With an optimizer, those that it steps.

## Why is this bad?
They do not train, and nothing says so: the loss falls, since the head learns on what it gets. Most
often the frozen part in the middle runs under ``torch.no_grad()`` or its output is detached, and
with that everything before it is cut off. ``requires_grad=False`` is enough there: it records no
gradient for the frozen weights, and lets the one of the activations pass.

## Example
```python
import torch, frostline as fl

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.trunk, self.head = (torch.nn.Linear(4, 4) for _ in range(3))
        self.trunk.requires_grad_(False)

    def forward(self, x):
        x = self.stem(x)
        with torch.no_grad():
            x = self.trunk(x)
        return self.head(x)

report = fl.audit(Net(), batch=torch.randn(8, 4))
assert ("FRZ207", "stem") in {(finding.code, finding.where) for finding in report.findings}
```

## Use instead
```python
class Passing(Net):
    def forward(self, x):
        return self.head(self.trunk(self.stem(x)))

assert fl.audit(Passing(), batch=torch.randn(8, 4)).ok
```

## Fix safety
There is no code that mends this from outside: the forward has to change. Without ``no_grad`` the
activations of the frozen part are kept for the backward, which takes memory.

## Known problems
A module that is used for some batches only (an expert, a branch for one kind of sample) is found
if this batch is none of them. Layers that are left out at random get several tries.

## References
- stargan-v2#16: no_grad around a frozen middle, proposed as a way of freezing
- transformers#21381 and #23170: a checkpoint over a frozen input gives nothing a gradient
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Facts, Subject

_MEND = (
    "# let the gradient pass through the frozen part: no torch.no_grad() and no .detach() around\n"
    "# it, requires_grad=False is enough; or freeze what is not used, with .requires_grad_(False)"
)


def check(subject: Subject) -> Iterator[Sighting]:
    """The outermost modules below which no gradient reached anything that is to train."""
    if subject.now.reached is None or subject.now.raised or subject.after_train.raised:
        return
    reached = subject.now.reached | (subject.after_train.reached or frozenset())
    given = {id(parameter) for parameter in subject.stepped()}
    missing: dict[int, list[nn.Parameter]] = {}
    trains: set[int] = set()  # modules with something at or below them that a gradient reached
    for facts in reversed(subject.modules):  # children before their parents
        own = [p for p in facts.module._parameters.values() if p is not None and p.requires_grad]
        if any(id(parameter) in reached for parameter in own):
            trains.add(id(facts.module))
        if id(facts.module) in trains and facts.parent is not None:
            trains.add(id(facts.parent.module))
        missing[id(facts.module)] = [
            p
            for p in own
            if id(p) not in reached and not subject.is_frozen(p) and (not given or id(p) in given)
        ]
    yield from _told(subject, missing, trains)


def _told(
    subject: Subject, missing: dict[int, list[nn.Parameter]], trains: set[int]
) -> Iterator[Sighting]:
    tops: dict[int, tuple[Facts, list[nn.Parameter]]] = {}
    for facts in subject.modules:
        for parameter in missing[id(facts.module)]:
            top = _top(facts, trains)
            tops.setdefault(id(top.module), (top, []))[1].append(parameter)
    for top, parameters in tops.values():
        size = sum(parameter.numel() for parameter in parameters)
        several = f"{len(parameters):,} parameters" if len(parameters) > 1 else "1 parameter"
        yield Sighting(
            top.name,
            "warning",
            f"no gradient reached {several} of {top.kind} that should train ({size:,} elements)",
            _MEND,
        )


def _top(facts: Facts, trains: set[int]) -> Facts:
    while id(facts.module) not in trains and facts.parent is not None:
        if id(facts.parent.module) in trains:
            break
        facts = facts.parent
    return facts


RULE = Rule(code="FRZ207", name="trainable-param-without-gradient", check=check)
