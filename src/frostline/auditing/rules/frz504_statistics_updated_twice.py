"""# statistics-updated-twice (FRZ504)

## What it does
Finds norms that count a training step several times: their running statistics are averaged more
than once in one step. The counters are read before and after a measured step.

## Why is this bad?
Two things do it. Activation checkpointing runs a block again for the backward, with the same
batch: the statistics then move with ``1 - (1 - momentum)^2``, nearly twice as fast as without. And
some losses run a model several times (real and fake images, two views, a teacher under
``no_grad``, which does not stop statistics): they then mix what the passes see, and the last one
counts most.

## Example
```python
import torch, frostline as fl
from torch.utils.checkpoint import checkpoint

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        self.head = torch.nn.Linear(4, 1)

    def forward(self, x):
        return self.head(checkpoint(self.block, x, use_reentrant=False))

report = fl.audit(Net(), batch=torch.randn(8, 4))
assert ("FRZ504", "block.1") in {(finding.code, finding.where) for finding in report.findings}
```

## Use instead
```python
class Once(Net):
    def forward(self, x):
        return self.head(self.block[1](checkpoint(self.block[0], x, use_reentrant=False)))

assert fl.audit(Once(), batch=torch.randn(8, 4)).ok
```
For a frozen norm: ``fl.freeze(model, "block")``, which holds its statistics.

## Fix safety
Holding a frozen norm is safe. For a trainable one the forward has to change.

## Known problems
Passes that are meant to share statistics are found, too: ignore the rule for these norms.

## References
- pytorch#96136, pytorch#62471, fairscale#1035: batch norm under activation checkpointing
- unbiased-teacher#47, tensorpack#1183: passes under no_grad, and of real and fake images
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.measuring.writers import AGAIN
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.step import Step
from frostline.auditing.subject import Facts, Subject

_CHECKPOINT = (
    "# leave this norm out of the checkpointed block, or divide its momentum by 2 and accept that\n"
    "# the batch counts twice"
)
_SEVERAL = (
    "# run the model once, on all inputs joined; or hold it during the other passes:\n"
    "#   with fl.freeze(model, params=False): ..."
)


def check(subject: Subject) -> Iterator[Sighting]:
    """Norms that count a step more than once, now or, if they train, after ``train()``."""
    for facts in subject.modules if subject.now.calls or subject.after_train.calls else ():
        key = id(facts.module)
        now, later = subject.now.calls.get(key, 0), subject.after_train.calls.get(key, 0)
        if now > 1:
            yield _sighting(subject, facts, subject.now, now)
        elif later > 1 and not facts.frozen:  # a frozen one is told by FRZ102
            yield _sighting(subject, facts, subject.after_train, later, "after model.train(): ")


def _sighting(subject: Subject, facts: Facts, step: Step, count: int, when: str = "") -> Sighting:
    again = _ran_again(facts, step)
    why = "it runs again for the backward" if again else "the loss runs it several times"
    mend = _CHECKPOINT if again else _SEVERAL
    return Sighting(
        facts.name,
        "warning",
        f"{when}{facts.kind} counts one step {count} times: {why}",
        subject.freezing(facts) if facts.frozen else mend,
    )


def _ran_again(facts: Facts, step: Step) -> bool:
    """Whether something of it was written in the backward."""
    own = (tensor for tensor in facts.module._buffers.values() if tensor is not None)
    return any(AGAIN in step.writers.get(id(tensor), "") for tensor in own)


RULE = Rule(code="FRZ504", name="statistics-updated-twice", check=check)
