"""# partly-frozen-module (FRZ004)

## What it does
Finds modules that are frozen in part: some of a module's own parameters are frozen and others are
not, or what is below it is frozen and a parameter of its own was left out.

## Why is this bad?
Often it is meant, as in training biases alone. Often it is not: a loop over ``named_children()``
misses ``cls_token`` and ``pos_embed``, which belong to the root. A norm with a frozen scale and a
trainable shift does not count as frozen, so its running statistics move; a warning then.

## Example
```python
import torch, frostline as fl

class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_token = torch.nn.Parameter(torch.zeros(1, 1, 4))
        self.block = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 2)

model = Encoder()
model.block.requires_grad_(False)
report = fl.audit(model)
assert [finding.code for finding in report.findings] == ["FRZ004"]
```

## Use instead
```python
fl.freeze(model, ["cls_token", "block"])
assert fl.audit(model).findings == ()
```

## Fix safety
Unsafe: parameters that were trained no longer are. If they are to be trained, leave it.

## References
- timm's ``freeze`` says it freezes a whole root module, and leaves its own parameters out
- open_clip#244: parameters of the root that a freeze by children missed
- Zaken et al., BitFit, 2021: biases alone, on purpose
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.rules.parameters import listed
from frostline.auditing.subject import Facts, Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Modules with own parameters of both kinds, or trainable ones over frozen children."""
    own, below = _kinds(subject)
    for facts in subject.modules:
        kinds = own[id(facts.module)]
        if kinds == _TRAINABLE | _FROZEN:
            yield _mixed(facts)
        elif kinds == _TRAINABLE and (children := _frozen_children(facts, below)):
            yield _left_out(facts, children)


# Bits, as there are as many of these as modules.
_TRAINABLE, _FROZEN = 1, 2


def _kinds(subject: Subject) -> tuple[dict[int, int], dict[int, int]]:
    """Which kinds of parameters each module has of its own, and which at or below it."""
    own: dict[int, int] = {}
    for facts in subject.modules:
        bits = 0
        for parameter in facts.module._parameters.values():
            if parameter is not None:
                bits |= _TRAINABLE if parameter.requires_grad else _FROZEN
        own[id(facts.module)] = bits
    below = dict(own)
    for facts in reversed(subject.modules):  # children come after their parents
        if facts.parent is not None:
            below[id(facts.parent.module)] |= below[id(facts.module)]
    return own, below


def _frozen_children(facts: Facts, below: dict[int, int]) -> list[str]:
    children = facts.module._modules.items()
    return [name for name, child in children if child is not None and below[id(child)] == _FROZEN]


def _named(facts: Facts, *, trainable: bool) -> list[str]:
    own = facts.module._parameters.items()
    return [name for name, p in own if p is not None and p.requires_grad is trainable]


def _mixed(facts: Facts) -> Sighting:
    also = _also(facts)
    frozen, trained = _named(facts, trainable=False), _named(facts, trainable=True)
    return Sighting(
        facts.name,
        "warning" if also else "info",
        f"{facts.kind}: {_short(frozen)} frozen, {_short(trained)} trainable{also}",
        _mend([facts.name] if also else _inside(facts, trained)),
    )


def _left_out(facts: Facts, children: list[str]) -> Sighting:
    also, trained = _also(facts), _named(facts, trainable=True)
    return Sighting(
        facts.name,
        "warning" if also else "info",
        f"its own {_short(trained)} trainable, {_short(children)} below it frozen{also}",
        _mend(_inside(facts, trained)),
    )


def _also(facts: Facts) -> str:
    """What such a module does that a frozen one must not, in words."""
    doings = facts.doing(facts.training), facts.doing(facts.after_train)
    known = facts.behaviour is not None and facts.behaviour.sure
    for doing in doings if known else ():
        if doing is not None and doing.writes:
            return f"; its forward writes {_short([w.tensor for w in doing.writes])}"
        if doing is not None and doing.random:
            return "; its forward draws random numbers"
    return ""


def _short(names: list[str]) -> str:
    return listed([name[:20] for name in names], most=2)


def _inside(facts: Facts, names: list[str]) -> list[str]:
    return [f"{facts.name}.{name}" if facts.name else name for name in names]


def _mend(names: list[str]) -> str:
    given = names if len(names) > 1 else names[0]
    return f"fl.freeze(model, {given!r})"


RULE = Rule(code="FRZ004", name="partly-frozen-module", check=check)
