"""# claimed-but-trainable (FRZ003)

## What it does
Finds parameters with ``requires_grad=True`` in what is said to be frozen: by ``frozen=``, or by a
part that ``fl.freeze`` made and whose flags somebody switched on again.

## Why is this bad?
A gradient is computed for them, and an optimizer that has them moves them. Without an optimizer
that has them, gradients are kept that nobody uses, and ``clip_grad_norm_`` counts them.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
report = fl.audit(model, frozen="0")
assert [finding.code for finding in report.findings] == ["FRZ003"]
```

## Use instead
```python
fl.freeze(model, "0")
assert fl.audit(model, frozen="0").ok
```
In plain PyTorch: ``model[0].requires_grad_(False)``.

## Fix safety
Safe if the claim is what you mean: values stay, and gradients that exist are set aside.

## References
- frameworks that switch flags on again: yolov5#1213, PyTorchLightning#5574, FlagScale#1125
- objects replaced by new ones, which require gradients: pytorch#171523
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline._names import NamedTensor
from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import by_place, is_held, names
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each frozen module with such parameters."""
    places = list(by_place(subject, _wrong(subject)))
    mend = _freezing([where for where, _ in places])
    for where, group in places:
        one = len(group) == 1
        whose = "a frozen part" if is_held(group[0]) else subject.claim.text
        yield Sighting(
            where,
            "error",
            f"{plural(len(group), 'parameter')} of {whose[:60]} "
            f"{'has' if one else 'have'} requires_grad=True",
            mend,
            names(group),
        )


def _freezing(places: list[str]) -> str:
    """All of them at once: tensors that are tied or share memory cannot be frozen by halves."""
    if "" in places:
        return "fl.freeze(model)"
    given = places[0] if len(places) == 1 else places
    return f"fl.freeze(model, {given!r})"


def _wrong(subject: Subject) -> Iterator[NamedTensor]:
    claimed = {id(entry.tensor) for entry in subject.claim.selected}
    for entry in subject.parameters:
        if entry.tensor.requires_grad and (id(entry.tensor) in claimed or is_held(entry)):
            yield entry


RULE = Rule(code="FRZ003", name="claimed-but-trainable", check=check)
