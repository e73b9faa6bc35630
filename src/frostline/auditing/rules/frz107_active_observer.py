"""# active-observer (FRZ107)

## What it does
Finds observers of quantisation in the frozen part that are switched on: those of ``FakeQuantize``,
and observers that stand alone.

## Why is this bad?
An observer notes the range of what it sees, and ``FakeQuantize`` sets its scale by it. The switch
is a buffer of its own, ``observer_enabled``; ``requires_grad``, eval mode and ``no_grad`` do not
matter. In quantisation-aware training the frozen layers are then quantised otherwise after each
step, in validation as well.

## Example
```python
import torch, frostline as fl
from torch.ao.quantization import FakeQuantize, MovingAverageMinMaxObserver

layers = torch.nn.Linear(2, 2), FakeQuantize(MovingAverageMinMaxObserver)
model = torch.nn.Sequential(torch.nn.Sequential(*layers), torch.nn.Linear(2, 1))
model[0].requires_grad_(False)
report = fl.audit(model.eval())
assert [finding.code for finding in report.findings] == ["FRZ107"]
```

## Use instead
```python
fl.freeze(model, "0")
assert fl.audit(model).ok
```
In plain PyTorch: ``module.apply(torch.ao.quantization.disable_observer)`` on the frozen part.

## Fix safety
Safe: quantisation goes on with the scale that is there. Freeze after calibration, since an observer
that never saw anything has a scale of 1.

## Known problems
The observer of a frozen layer's own weight sees the same weight each time, so that it moves nothing
any more. Only a batch shows that.

## References
- pytorch PR#26624, sparseml PR#1206, PyTorchLightning PR#8540, MQBench PR#277
- Jacob et al., Quantization and Training of Neural Networks, 2018
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.finding import Severity
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.mechanisms import written_by
from frostline.auditing.subject import Facts, Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen observers that watch; one finding for a FakeQuantize and its observer."""
    found: dict[int, tuple[Facts, list[str], Severity]] = {}
    for facts, names, severity in written_by(subject, "observer"):
        above = facts.parent
        if above is not None and id(above.module) in found:
            first, known, worst = found[id(above.module)]
            severity = worst if worst == "error" else severity
            found[id(above.module)] = first, [*known, *names], severity
        else:
            found[id(facts.module)] = facts, list(names), severity
    for facts, changed, severity in found.values():
        listed = ", ".join(name.rpartition(".")[2] for name in changed)
        yield Sighting(
            facts.name,
            severity,
            f"{facts.kind} observes its input in every mode and writes {listed}",
            subject.freezing(facts),
            tuple(changed),
        )


RULE = Rule(code="FRZ107", name="active-observer", check=check)
