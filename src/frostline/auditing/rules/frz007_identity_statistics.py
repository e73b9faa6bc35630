"""# identity-statistics (FRZ007)

## What it does
Finds frozen norms whose running statistics are those of a new layer: mean 0, variance 1, no batch
counted.

## Why is this bad?
Frozen before any batch was seen, or before the weights were loaded, such a norm normalises nothing
for as long as it is frozen. A frozen norm of a detector's backbone without pretrained weights, and
norms that ``update_bn`` reset and could not fill again, end up like this.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
model[0].requires_grad_(False)
assert "FRZ007" in {finding.code for finding in fl.audit(model).findings}
```

## Use instead
```python
model[0].load_state_dict({  # of the pretrained model
    "weight": torch.ones(2), "bias": torch.zeros(2), "running_mean": torch.tensor([0.1, -0.3]),
    "running_var": torch.tensor([0.5, 2.0]), "num_batches_tracked": torch.tensor(1000),
})
fl.freeze(model, "0")
assert fl.audit(model).ok
```

``fl.freeze`` warns of such norms when it is called.

## Fix safety
There is no code that mends this in general: load the weights first, or let ``fl.recalibrate`` fill
the statistics from data.

## References
- torchvision builds trainable norms where a backbone is not pretrained, for this reason
- maskrcnn-benchmark#267; torch.optim.swa_utils.update_bn, which begins with a reset
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Facts, Subject
from frostline.freezing.holders import tracks_statistics


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each frozen part with such norms."""
    tops: dict[int, list[Facts]] = {}
    for facts in subject.frozen_modules():
        if tracks_statistics(facts.module) and _is_new(facts.module):
            tops.setdefault(id(subject.top(facts).module), []).append(facts)
    for key, norms in tops.items():
        yield Sighting(
            subject.by_module[key].name if len(norms) > 1 else norms[0].name,
            "warning",
            f"{plural(len(norms), 'frozen norm')} with statistics of a new layer: "
            "mean 0, variance 1, no batch counted",
            "# load the weights before freezing, or fill the statistics from data:\n"
            "#   fl.recalibrate(model, batches)",
        )


def _is_new(module: nn.Module) -> bool:
    own = module._buffers
    counter, mean, variance = (
        own.get(name) for name in ("num_batches_tracked", "running_mean", "running_var")
    )
    if mean is None or variance is None or not all(map(_is_plain, (mean, variance))):
        return False
    if counter is not None and (not _is_plain(counter) or bool(counter)):
        return False
    return not bool(mean.any()) and bool((variance == 1).all())


def _is_plain(tensor: Tensor) -> bool:
    """Whether it has values; not on the meta device, lazy, or of a class that keeps them away."""
    return type(tensor) is Tensor and not tensor.is_meta


RULE = Rule(code="FRZ007", name="identity-statistics", check=check)
