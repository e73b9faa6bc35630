"""# power-iteration-update (FRZ104)

## What it does
Finds spectral normalisation in the frozen part that takes a step of its power iteration now: the
parametrisation ``torch.nn.utils.parametrizations.spectral_norm``, and the old
``torch.nn.utils.spectral_norm``, which is a hook.

## Why is this bad?
Both keep estimates of two singular vectors in buffers and improve them in each forward in training
mode. The weight that is used is divided by what they say, so the frozen layer computes something
else after each step, although its parameter kept its value. It happens to discriminators that are
frozen while the generator trains, and to perceptual losses.

## Example
```python
import torch, frostline as fl

layer = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(4, 4))
model = torch.nn.Sequential(layer, torch.nn.Linear(4, 1))
model[0].requires_grad_(False)
report = fl.audit(model)
assert "FRZ104" in {finding.code for finding in report.findings}
assert len(report.will_change) == 2  # _u and _v
```

## Use instead
```python
fl.freeze(model, "0")
assert fl.audit(model).ok
```

## Fix safety
Safe: the layer uses the vectors that it has, as in evaluation.

## References
- Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018
- torch's documentation: the vectors are updated in training mode, at every access of the weight
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.mechanisms import written_by
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen spectral norms that iterate now."""
    for facts, names, severity in written_by(subject, "power iteration"):
        listed = " and ".join(name.rpartition(".")[2] for name in names[:2])
        yield Sighting(
            facts.name,
            severity,
            f"spectral_norm in training mode: every forward writes {listed}",
            subject.freezing(facts),
            names,
        )


RULE = Rule(code="FRZ104", name="power-iteration-update", check=check)
