"""# rows-frozen-by-hook (FRZ206)

## What it does
Finds trainable parameters with a gradient hook that sets rows to zero, in a group with weight decay
or, once the optimizer has state for them, with momenta. What a hook does is read from its code.

## Why is this bad?
A gradient of zero is not no gradient. Decoupled weight decay shrinks the rows in every step, and
momenta go on moving them. Embeddings of all old tokens decay to 0 while a new one is learned.

## Example
```python
import torch, frostline as fl

model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.Linear(4, 1))
new_rows = torch.zeros(10, 1)
new_rows[9] = 1
model[0].weight.register_hook(lambda gradient: gradient * new_rows)
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
report = fl.audit(model, optimizer=optimizer)
assert "FRZ206" in {finding.code for finding in report.findings}
```

## Use instead
```python
optimizer = torch.optim.AdamW([
    {"params": model[0].parameters(), "weight_decay": 0.0},
    {"params": model[1].parameters(), "weight_decay": 0.01},
])
assert fl.audit(model, optimizer=optimizer).ok
```
Or freeze the whole table, and train a small one of the new rows beside it.

## Fix safety
There is no code that mends this in general: the groups are made where the optimizer is.

## Known problems
Preview: a hook in another function's hands, or one that asks its arguments, is not understood.

## References
- diffusers#507, #1009, #1176: rows that decay; Unlearn-Saliency#32: the same by a mask
- axolotl's ``unfrozen_parameters`` with ranges, which is such a hook
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any

from torch import Tensor

from frostline.auditing.rule import Rule, Sighting
from frostline.auditing.subject import Subject

# A hook that asks for these cleans a gradient, and freezes nothing.
_CLEANS = frozenset({"isnan", "isinf", "isfinite", "nan_to_num", "abs", "norm"})
_ADVICE = (
    "# give it a group of its own without weight decay, before the first step:\n"
    '#   {"params": [weight], "weight_decay": 0.0}'
)


def check(subject: Subject) -> Iterator[Sighting]:
    """One finding for each such parameter."""
    groups = subject.optimizer.param_groups if subject.optimizer is not None else ()
    group_of = {id(p): group for group in groups for p in group["params"]}
    for entry in subject.parameters:
        hooks, group = entry.tensor._backward_hooks, group_of.get(id(entry.tensor))
        if not hooks or group is None or not entry.tensor.requires_grad:
            continue
        moves = _moves(subject, entry.tensor, group)
        if moves and any(_zeroes_rows(hook, entry.tensor) for hook in hooks.values()):
            message = f"a hook sets rows of its gradient to zero, and {moves} moves them"
            yield Sighting(entry.name, "warning", message, _ADVICE)


def _moves(subject: Subject, parameter: Tensor, group: dict[str, Any]) -> str:
    """What moves a row whose gradient is zero, in words; empty if nothing does."""
    kind = type(subject.optimizer).__name__
    decay = group.get("weight_decay", 0)
    if decay:
        return f"{kind} with weight_decay={decay:g}"
    lived = subject.optimizer is not None and parameter in subject.optimizer.state
    momenta = group.get("momentum") or group.get("betas") or group.get("alpha")
    return f"the momentum that {kind} has" if lived and momenta else ""


def _zeroes_rows(hook: Any, parameter: Tensor) -> bool:
    while isinstance(hook, functools.partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    code = getattr(function, "__code__", None)
    if code is None or not _CLEANS.isdisjoint(code.co_names):
        return False
    return _writes_zeros(code) or any(_is_mask(v, parameter) for v in _at_hand(function, code))


def _writes_zeros(code: CodeType) -> bool:
    """Whether it has ``gradient[...] = 0`` or ``gradient[...].zero_()``."""
    lines = list(dis.get_instructions(code))
    stores = 0 in code.co_consts and any(line.opname == "STORE_SUBSCR" for line in lines)
    subscripts = any(line.opname in ("BINARY_SUBSCR", "BINARY_SLICE") for line in lines)
    return stores or (subscripts and not {"zero_", "fill_"}.isdisjoint(code.co_names))


def _at_hand(function: Any, code: CodeType) -> Iterable[Any]:
    """The values that its code can name: of closure, defaults and globals."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a variable that has no value yet
            continue
    yield from function.__defaults__ or ()
    known = function.__globals__
    yield from (known[name] for name in code.co_names if name in known)


def _is_mask(value: Any, parameter: Tensor) -> bool:
    """Whether a tensor has a value for each row, of which some are zero and some are not."""
    if not isinstance(value, Tensor) or value.is_meta or value.ndim != parameter.ndim:
        return False
    if value.shape[0] != parameter.shape[0]:
        return False
    rows = (value.detach() != 0).flatten(1).any(dim=1) if value.ndim > 1 else value != 0
    return bool(rows.any()) and not bool(rows.all())


RULE = Rule(code="FRZ206", name="rows-frozen-by-hook", check=check, status="preview")
