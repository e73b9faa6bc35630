"""# recurrent-backward-in-eval (FRZ112)

## What it does
Finds frozen LSTM, GRU and RNN that are in eval mode while the model trains and that something
trainable stands before, so that gradients have to pass through them. A warning on CUDA, info
elsewhere.

## Why is this bad?
The recurrent kernels of cuDNN keep what backward needs in training mode only. In eval mode they
raise ``cudnn RNN backward can only be called in training mode``, in the first backward pass on the
GPU, after everything worked on the CPU.

## Example
```python
import torch, frostline as fl

class Tagger(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Linear(3, 4)
        self.rnn = torch.nn.LSTM(4, 4)

    def forward(self, x):
        return self.rnn(self.embed(x))[0]

model = Tagger()
model.rnn.requires_grad_(False).eval()
assert "FRZ112" in {finding.code for finding in fl.audit(model).findings}
```

## Use instead
```python
fl.freeze(model, "rnn")
assert fl.audit(model).ok
```
In plain PyTorch: leave it in training mode and set its ``dropout`` to 0.

## Fix safety
Safe: a held one asks for the kernel of training mode while gradients pass through it, with its
dropout at 0, which gives the numbers of eval mode.

## Known problems
Which module runs before which is taken from the order in which they were registered.

## References
- pytorch#8582, pytorch#5878, pytorch#15788, pytorch#37965, captum#564
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.upstream import is_eval_while_training, with_trainable_before
from frostline.auditing.subject import Facts, Subject
from frostline.freezing.record import is_held

_REFUSED = "RNN backward can only be called in training mode"


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen recurrent layers in eval mode that gradients pass through."""
    before: set[int] | None = None
    refused = _REFUSED in subject.now.raised
    for facts in subject.frozen_modules():
        if not isinstance(facts.module, nn.RNNBase) or is_held(facts.module):
            continue
        if not is_eval_while_training(subject, facts):
            continue
        before = with_trainable_before(subject) if before is None else before
        if refused or id(facts.module) in before:
            yield _seen(subject, facts)


def _seen(subject: Subject, facts: Facts) -> Sighting:
    cuda = any(parameter.is_cuda for parameter in facts.module.parameters(recurse=False))
    refuses = "cuDNN refuses" if cuda else "on CUDA cuDNN would refuse"
    return Sighting(
        facts.name,
        "warning" if cuda else "info",
        f"{facts.kind} in eval mode with trainable parameters before it: {refuses} backward",
        subject.freezing(facts),
    )


RULE = Rule(code="FRZ112", name="recurrent-backward-in-eval", check=check)
