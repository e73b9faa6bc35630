"""# nondeterministic-frozen-part (FRZ601)

## What it does
Finds frozen modules that give other outputs from the same inputs in eval mode. The model runs
twice on a few samples, with another random state; each module gets the inputs of the first run, so
that the module that differs by its own doing is named, and not those behind it.

## Why is this bad?
Eval mode is taken for "no randomness", and what is frozen for a fixed function. Functions ask
nobody: ``F.dropout(x)`` drops unless it is told not to, and
``scaled_dot_product_attention(dropout_p=...)`` always does. Features that are cached are then one
draw of many, evaluations differ from run to run, and holding the module changes nothing.

## Example
```python
import torch, frostline as fl
from torch.nn import functional as F

class Noisy(torch.nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.3)

model = torch.nn.Sequential(Noisy(4, 4), torch.nn.Linear(4, 1))
model[0].requires_grad_(False)
report = fl.audit(model, batch=torch.randn(8, 4))
assert ("FRZ601", "0") in {(finding.code, finding.where) for finding in report.findings}
```

## Use instead
```python
class Asking(torch.nn.Linear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.3, training=self.training)

model[0] = Asking(4, 4).requires_grad_(False)
fl.freeze(model, "0")
assert fl.audit(model, batch=torch.randn(8, 4)).ok
```

## Fix safety
The module's own code has to change. What it then computes in evaluation is another thing than
before: the mean, not a draw.

## Known problems
Differences within rounding, as kernels with atomic additions give them, are not told.

## References
- IBL_MtM_model#13: dropout by a function stays on in evaluation
- torch.nn.functional.dropout, whose ``training`` is True unless given
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject

_MEND = (
    "# let its own code ask for the mode: F.dropout(x, p, training=self.training), or\n"
    "# scaled_dot_product_attention(..., dropout_p=p if self.training else 0.0)"
)


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen modules that do not repeat themselves in eval mode."""
    for found in subject.probes.unsteady if subject.probes is not None else ():
        if found.facts.after_eval:  # it is not in eval mode: FRZ109 tells that
            continue
        yield Sighting(
            found.facts.name,
            "warning",
            f"{found.facts.kind} in eval mode: two runs from the same inputs differ by "
            f"{found.effect:.2g} times its size",
            _MEND,
        )


RULE = Rule(code="FRZ601", name="nondeterministic-frozen-part", check=check)
