"""# stuck-in-training (FRZ109)

## What it does
Finds frozen parts that stay in training mode when ``model.eval()`` is called, if something in them
does other things in training than in evaluation. What ``eval()`` does to each module is found by
calling it and putting everything back.

## Why is this bad?
A ``train`` of one's own that skips the frozen encoder skips it for both modes. An encoder that was
in training mode when it was frozen then stays so: its dropout and stochastic depth are on while
validation runs, and validation is noisy and too low.

## Example
```python
import torch, frostline as fl

class Segmenter(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1))
        self.head = torch.nn.Linear(2, 1)

    def train(self, mode=True):
        self.training = mode
        self.head.train(mode)  # the encoder is frozen, so it is skipped
        return self

model = Segmenter()
model.encoder.requires_grad_(False)
assert "FRZ109" in {finding.code for finding in fl.audit(model).findings}
```

## Use instead
```python
fl.freeze(model, "encoder")
assert fl.audit(model).ok
```

## Fix safety
Safe: the frozen part is in eval mode, whatever ``train`` is called.

## References
- segmentation_models.pytorch: ``train`` passes the frozen encoder by
- pytorch#68648: the wish for modules that ``train()`` does not touch
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Facts, Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Outermost frozen modules that eval() does not reach, with what they do in training."""
    outermost: dict[int, Facts] = {}
    doing: dict[int, list[Facts]] = {}
    for facts in subject.frozen_modules():
        if not facts.after_eval:
            continue
        above = outermost.get(id(facts.parent.module)) if facts.parent is not None else None
        top = outermost[id(facts.module)] = above or facts
        if facts.behaviour is not None and not facts.behaviour.same_in_both:
            doing.setdefault(id(top.module), []).append(facts)
    for key, members in doing.items():
        yield _seen(subject, outermost[key], members)


def _seen(subject: Subject, top: Facts, members: list[Facts]) -> Sighting:
    kinds = list(dict.fromkeys(facts.kind for facts in members))
    listed = ", ".join(kinds[:3]) + (", ..." if len(kinds) > 3 else "")
    count = f"{len(members):,} module{'s' if len(members) > 1 else ''}"
    message = (
        f"in training mode after model.eval(), and so are {count} that it matters to: {listed}"
    )
    return Sighting(top.name, "warning", message[:120], subject.freezing(top))


RULE = Rule(code="FRZ109", name="stuck-in-training", check=check)
