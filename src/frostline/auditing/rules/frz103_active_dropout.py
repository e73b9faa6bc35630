"""# active-dropout (FRZ103)

## What it does
Finds modules in the frozen part that draw random numbers now or after ``model.train()``: dropout
in all its forms, stochastic depth, LayerDrop, SpecAugment, attention with ``dropout_p``, and code
that calls ``F.dropout``, ``torch.rand`` or the like by itself. Those that stop in eval mode are
told once for each frozen part; those that draw in every mode one by one. A part that was frozen
with ``mode="follow"`` has them on purpose.

## Why is this bad?
The frozen part gives another output each time on the same input. A teacher that drops values
teaches noise, and features that are cached once differ from those that training would see. Some
want it: dropout in front of a head regularises the head. So this only informs.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(
    torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.1)), torch.nn.Linear(2, 1)
)
model[0].requires_grad_(False)
assert [finding.code for finding in fl.audit(model).findings] == ["FRZ103"]
```

## Use instead
```python
fl.freeze(model, "0")  # or with mode="follow", if the dropout is wanted
assert not fl.audit(model).findings
```

## Fix safety
Safe for values and modes of all else; the frozen part's output in training becomes that of
evaluation. What draws in every mode has no such switch: its code has to change.

## Known problems
Of classes that nobody registered the code is read. That it draws only if a condition holds is not
seen, unless the condition is a chance of 0 in the module, its dropout or its config.

## References
- butd_detr#8 and NeMo PR#3540: dropout left on in a frozen encoder
- pytorch/audio#1995: whether it should be off is a matter of debate
- IBL_MtM PR#13: ``F.dropout`` without ``training=self.training`` drops in evaluation
- Srivastava et al., Dropout, 2014
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from torch import nn

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Facts, Subject
from frostline.behaviours.drawing import draws
from frostline.behaviours.unknown import question
from frostline.freezing.record import get


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen modules that draw random numbers."""
    stoppable: dict[int, tuple[Facts, Counter[str]]] = {}
    for facts in subject.frozen_modules():
        always, in_training = _random(facts)
        if always:
            yield _always(facts, always)
        elif in_training and get(facts.module) is None:
            top = _top(facts)
            stoppable.setdefault(id(top.module), (top, Counter()))[1][facts.kind] += 1
    for top, kinds in stoppable.values():
        yield _stoppable(subject, top, kinds)


def _top(facts: Facts) -> Facts:
    """The outermost frozen module around it that runs; a list of modules does not."""
    found = here = facts
    while here.parent is not None and here.parent.frozen:
        here = here.parent
        if not isinstance(here.module, nn.ModuleList | nn.ModuleDict):
            found = here
    return found


def _random(facts: Facts) -> tuple[str, bool]:
    """What draws in every mode, in words, and whether something draws in training only."""
    known = facts.behaviour
    if known is not None and known.in_eval.random:
        return known.in_eval.words, False
    trains = facts.training or facts.after_train
    if known is not None and known.sure:
        return "", trains and known.in_training.random
    line = draws(facts.module)
    if line is None or _asks(facts):
        return "", line is not None and trains
    return line, False


def _asks(facts: Facts) -> bool:
    return question(type(facts.module)) is not None


def _stoppable(subject: Subject, top: Facts, kinds: Counter[str]) -> Sighting:
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(3))
    more = f" and {len(kinds) - 3} other kinds" if len(kinds) > 3 else ""
    when = "in training mode" if top.training else "after model.train()"
    message = f"draws random numbers {when}: {listed}{more}"
    return Sighting(top.name, "info", message[:120], subject.freezing(top))


def _always(facts: Facts, what: str) -> Sighting:
    message = f"{facts.kind} draws random numbers in every mode: {what}"
    mend = (
        f"# {facts.kind} asks for no mode. Change its code so that it draws in training only:\n"
        "#   if self.training: ..."
    )
    return Sighting(facts.name, "info", message[:120], mend)


RULE = Rule(code="FRZ103", name="active-dropout", check=check)
