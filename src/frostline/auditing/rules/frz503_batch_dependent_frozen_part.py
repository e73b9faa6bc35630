"""# batch-dependent-frozen-part (FRZ503)

## What it does
Finds frozen modules whose output for a sample depends on the other samples of the batch. Some
samples of the batch are replaced by others, and what moves of the rest was coupled. Norms that use
the statistics of the batch, and modules that write to themselves, have rules of their own (FRZ101
to FRZ108).

## Why is this bad?
The frozen part is taken for a function of one sample. If it is none, features that were cached, or
computed with another batch size, are other features; microbatches do not add up to the big batch;
and an evaluation depends on the order of the data.

## Example
```python
import torch, frostline as fl

class AgainstTheMean(torch.nn.Module):
    def forward(self, x):
        return x - x.mean(0)

model = torch.nn.Sequential(torch.nn.Linear(4, 4), AgainstTheMean(), torch.nn.Linear(4, 1))
model[0].requires_grad_(False)
report = fl.audit(model, frozen=["0", "1"], batch=torch.randn(8, 4))
assert ("FRZ503", "1") in {(finding.code, finding.where) for finding in report.findings}
```

## Use instead
```python
model[1] = torch.nn.LayerNorm(4, elementwise_affine=False)  # each sample by itself
assert fl.audit(model, frozen=["0", "1"], batch=torch.randn(8, 4)).ok
```

## Fix safety
Where it happens in training mode only, holding the module is safe: it does as in evaluation. Else
its own code has to change, and with it what it computes.

## Known problems
The whole model is left out, unless it is one layer: where it computes a loss of its own, as a
contrastive one, its code brings the samples together.

## References
- batch statistics that stay in use in a norm said to be frozen: Lightning pull request 15063
- Ioffe, Batch Renormalization, 2017: why a batch in training and a sample in use differ
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.step import Step
from frostline.auditing.subject import Facts, Subject

_MEND = (
    "# its own code mixes samples: compute over other dimensions than the batch, or do not\n"
    "# cache or split what goes through it. See print(fl.coupling(model, batch))"
)


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen modules that couple samples, beside norms that are known to."""
    if subject.probes is None:
        return
    for found in subject.probes.coupled:
        if not _is_told(found.facts, found.facts.training, subject.now):
            yield _sighting(subject, found.facts, found.effect, later=False)
    for found in subject.probes.coupled_by_train:
        if not _is_told(found.facts, found.facts.after_train, subject.after_train):
            yield _sighting(subject, found.facts, found.effect, later=True)


def _is_told(facts: Facts, training: bool, step: Step) -> bool:
    """Whether it is a norm that uses the batch, or couples samples by what it writes to itself.

    Neither counts a whole model: where it computes the loss, its code brings the samples together.
    """
    if facts.parent is None and facts.module._modules:
        return True
    doing = facts.doing(training)
    if doing is not None and (doing.statistics == "batch" or doing.writes):
        return True
    own = (*facts.module._buffers.values(), *vars(facts.module).values())
    return any(id(value) in step.changed for value in own if isinstance(value, Tensor))


def _sighting(subject: Subject, facts: Facts, effect: float, *, later: bool) -> Sighting:
    when = "after model.train() other" if later else "other"
    return Sighting(
        facts.name,
        "warning",
        f"{facts.kind}: {when} samples of the batch change its output by {effect:.2g} times its "
        "size",
        subject.freezing(facts) if later else _MEND,
    )


RULE = Rule(code="FRZ503", name="batch-dependent-frozen-part", check=check)
