"""# eval-undone-by-train (FRZ102)

## What it does
Finds modules in the frozen part that are quiet now, because they are in eval mode, and that write
to themselves after ``model.train()``. What ``train()`` does to each module is found by asking it:
a ``train`` of the user's own that leaves the frozen part in eval mode is no finding.

## Why is this bad?
``model.eval()`` or ``backbone.eval()`` holds until the next ``model.train()``, which recurses into
every child. Training loops call it every epoch, trainers before each validation's end, and the
Trainer of transformers in each step.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
model[0].running_var.fill_(2.0)
model[0].requires_grad_(False).eval()
report = fl.audit(model)
assert [finding.code for finding in report.findings] == ["FRZ102"]
assert report.will_change == () and len(report.after_train) == 3
```

## Use instead
```python
fl.freeze(model, "0")
assert fl.audit(model).ok
```
In plain PyTorch: override ``train``, and after ``super().train(mode)`` call
``self.backbone.eval()``.

## Fix safety
Safe: a held module stays in the mode that it is in.

## References
- pytorch#9046 and pytorch#68648: requests for a regime that ``train()`` does not undo
- gt-pyg#112: the status said frozen while the statistics moved
- transformers' ``Trainer.training_step`` begins with ``model.train()``
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen modules that write nothing now, and do after ``model.train()``."""
    for facts in subject.frozen_modules():
        if facts.training or not facts.after_train or subject.written(facts, subject.now):
            continue
        later = subject.written(facts, subject.after_train)
        later += subject.written(facts, subject.after_train, maybe=True)
        if later:
            names = ", ".join(name.rpartition(".")[2] for name in later[:3])
            yield Sighting(
                facts.name,
                "warning",
                f"{facts.kind} in eval mode: after model.train() every forward writes {names}",
                subject.freezing(facts),
                later,
            )


RULE = Rule(code="FRZ102", name="eval-undone-by-train", check=check)
