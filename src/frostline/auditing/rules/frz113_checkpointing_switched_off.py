"""# checkpointing-switched-off (FRZ113)

## What it does
Finds frozen parts in eval mode whose layers have activation checkpointing switched on and use it
in training mode only, as all of transformers do, while gradients pass through them.

## Why is this bad?
Layers of transformers ask ``if self.gradient_checkpointing and self.training``. A frozen part that
was put into eval mode keeps all its activations then, without a word, and memory is what it was
without checkpointing. It matters where something trainable stands before the frozen part: prompts
that are learned, a trainable embedding, an adapter below, or an embedding whose output is made to
require a gradient, as transformers does where checkpointing is switched on.

## Example
```python
import torch, frostline as fl

class Block(torch.nn.Linear):
    gradient_checkpointing = True

    def forward(self, x):
        if self.gradient_checkpointing and self.training:
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)
        return super().forward(x)

model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(Block(2, 2), Block(2, 2)))
model[1].requires_grad_(False).eval()
assert "FRZ113" in {finding.code for finding in fl.audit(model).findings}
```

## Use instead
```python
for block in model[1]:
    block.train()  # nothing in it draws or writes in training mode
assert fl.audit(model).ok
```
``fl.freeze`` does this for the layers of transformers: held ones go on checkpointing.

## Fix safety
Safe for layers of transformers: values stay those of eval mode, and memory is spent for time again.
Of other classes the code has to ask ``torch.is_grad_enabled()`` in place of ``self.training``.

## Known problems
Which module runs before which is taken from the order in which they were registered.

## References
- transformers: the layers' ``self.gradient_checkpointing and self.training``
- Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.upstream import is_eval_while_training, with_trainable_before
from frostline.auditing.subject import Facts, Subject
from frostline.freezing.held_gates import HeldCheckpointing
from frostline.freezing.holders import registered
from frostline.freezing.reads_training import class_reads
from frostline.freezing.record import is_held

_SWITCH = "gradient_checkpointing"


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen parts that would checkpoint if they were in training mode."""
    found: dict[int, tuple[Facts, list[Facts]]] = {}
    before: set[int] | None = None
    for facts in subject.frozen_modules():
        if not _would_checkpoint(facts.module) or not is_eval_while_training(subject, facts):
            continue
        before = with_trainable_before(subject) if before is None else before
        if id(facts.module) in before:
            top = subject.top(facts)
            found.setdefault(id(top.module), (top, []))[1].append(facts)
    for top, layers in found.values():
        yield _seen(subject, top, layers)


def _would_checkpoint(module: nn.Module) -> bool:
    on = vars(module).get(_SWITCH, getattr(type(module), _SWITCH, False))
    return on is True and not is_held(module) and class_reads(type(module))


def _seen(subject: Subject, top: Facts, layers: list[Facts]) -> Sighting:
    kinds = ", ".join(dict.fromkeys(facts.kind for facts in layers))
    message = (
        f"in eval mode, so {len(layers):,} layers do not checkpoint although it is on: {kinds}"
    )
    mend = subject.freezing(top)
    if not all(_goes_on_when_held(facts.module) for facts in layers):
        mend = f"# ask torch.is_grad_enabled() in place of self.training in the code of {kinds}"
    return Sighting(layers[0].name, "info", message[:120], mend)


def _goes_on_when_held(module: nn.Module) -> bool:
    return registered(type(module)) is HeldCheckpointing


RULE = Rule(code="FRZ113", name="checkpointing-switched-off", check=check)
