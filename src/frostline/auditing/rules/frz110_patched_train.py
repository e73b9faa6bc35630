"""# patched-train (FRZ110)

## What it does
Finds modules in the frozen part whose ``train`` or ``eval`` was replaced on the object, as in
``model.train = disabled_train`` or ``model.train = lambda mode=True: model``. What torch itself
puts there on exported programs is none of them.

## Why is this bad?
It keeps the mode for a while. A plain function on an object gets no ``self``, so that
``module.train()`` raises ``TypeError`` while ``parent.train()`` works; a lambda cannot be pickled;
a copy made by ``deepcopy`` still calls the function of the original, so ``copy.eval()`` leaves the
copy alone; converters that build new modules (SyncBatchNorm) drop it; and whoever writes
``module.training = True`` passes it by.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.Linear(2, 1))
model[0].requires_grad_(False).eval()
model[0].train = lambda mode=True: model[0]
assert [finding.code for finding in fl.audit(model).findings] == ["FRZ110"]
```

## Use instead
```python
del model[0].train
fl.freeze(model, "0")
assert fl.audit(model).ok
```

## Fix safety
Safe: the mode is held by the object itself, in copies and pickles as well.

## References
- the ``disabled_train`` of latent-diffusion, copied into many repositories
- pytorch#68648: ``train = lambda _: None`` as a workaround
"""

from __future__ import annotations

from collections.abc import Iterator

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Facts, Subject


def check(subject: Subject) -> Iterator[Sighting]:
    """Frozen modules with a train or an eval of their own in their ``__dict__``."""
    for facts in subject.frozen_modules():
        for method in ("train", "eval"):
            if method in vars(facts.module) and not _is_of_a_library(vars(facts.module)[method]):
                yield _seen(subject, facts, method)


def _is_of_a_library(patch: object) -> bool:
    """Whether torch put it there itself, as it does on exported programs."""
    return str(getattr(patch, "__module__", "")).startswith(("torch.", "torchao."))


def _seen(subject: Subject, facts: Facts, method: str) -> Sighting:
    patch = vars(facts.module)[method]
    name = getattr(patch, "__name__", type(patch).__name__)
    mend = f"part = {subject.freezing(facts)}\ndel vars(part.modules[{facts.name!r}])[{method!r}]"
    message = f"{method} was replaced on this {facts.kind} object, by {name}"
    return Sighting(facts.name, "warning", message[:120], mend)


RULE = Rule(code="FRZ110", name="patched-train", check=check)
