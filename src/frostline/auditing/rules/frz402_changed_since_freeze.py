"""# changed-since-freeze (FRZ402)

## What it does
Compares every part that ``fl.freeze`` made with its content at the freeze, byte by byte. Parts that
were never sealed, and tensors without values, are left out.

## Why is this bad?
Something wrote to what is frozen, past the hold: ``load_state_dict``, an initialisation that ran
again, ``.data``. If it was a load that was meant, the part has to be told.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
part = fl.freeze(model, "0")
model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
assert [finding.code for finding in fl.audit(model).findings] == ["FRZ402"]
```

## Use instead
```python
part.seal()  # the load was meant
assert fl.audit(model).ok
```
Or load first, and freeze afterwards.

## Fix safety
Unsafe: what is there now is accepted. To get the old values back, load them and seal nothing.

## References
- mmdetection#9056, DINOv2_mmseg#1: an initialisation that wrote over loaded weights
- transformers#38061: a backbone that was initialised twice
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline._results import plural
from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import common_place
from frostline.auditing.subject import Subject
from frostline.freezing.finding import known
from frostline.freezing.part import FrozenPart
from frostline.freezing.record import get

# Other rules tell of modes and flags.
_OTHERS = ("mode", "requires_grad")
_MEND = (
    "# if what is there now is meant; otherwise load the old values\n"
    "for part in fl.parts(model):\n"
    "    part.seal()"
)


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each part that changed."""
    if all(get(facts.module) is None for facts in subject.modules):
        return
    for part in known(subject.model):
        names = _drifted(part)
        if names:
            of = f"{len(names):,} of {plural(len(part.tensors), 'tensor')}"
            yield Sighting(
                common_place(names),
                "error",
                f"{of} {'differs' if len(names) == 1 else 'differ'} from what was frozen",
                _MEND,
                tuple(names),
            )


def _drifted(part: FrozenPart) -> list[str]:
    if not part.sealed or any(tensor.is_meta for tensor in part.tensors.values()):
        return []
    return [c.name for c in part.changes() if c.severity == "drift" and c.kind not in _OTHERS]


RULE = Rule(code="FRZ402", name="changed-since-freeze", check=check)
